"""One self-contained HTML page that shows what attends to what.

`page` takes a `Record` (NumPy arrays and plain text, no model, no framework) and gives the page as
text; `write_page` puts it in a file, `iframe` makes it fit for a notebook. The page needs no
network and no server.
"""

from regard.viewer.page import iframe as iframe
from regard.viewer.page import page as page
from regard.viewer.page import write_page as write_page
from regard.viewer.record import Call as Call
from regard.viewer.record import Record as Record
from regard.viewer.text import Picture as Picture
from regard.viewer.text import Text as Text

__all__ = ["Call", "Picture", "Record", "Text", "iframe", "page", "write_page"]
