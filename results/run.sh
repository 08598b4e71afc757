#!/bin/sh
# Trains and measures every model of docs/results.md, one after the other.
# Killed and started again, it goes on where it was. Runs are kept in $RUNS, default: runs/.
#
#   sh results/run.sh && python docs/results.py
set -eu
cd "$(dirname "$0")/.."
runs=${RUNS:-runs}
regard=${REGARD:-regard}

learn() { # name, task, settings…
    name=$1 task=$2
    shift 2
    [ -f "$runs/$name/calibration.json" ] || $regard train "$task" --output "$runs/$name" --resume "$@"
}

measure() { # name of the report, name of the run, task, options…
    report=results/$1.json run=$runs/$2 task=$3
    shift 3
    [ -f "$report" ] || $regard evaluate "$task" --checkpoint "$run" --report "$report" "$@"
}

translator() { # name, settings…
    learn "$@"
    measure "$1" "$1" translation
    measure "$1-greedy" "$1" translation --beam 1
    measure "$1-2017" "$1" translation --split test_2017_flickr
    measure "$1-coco" "$1" translation --split test_2017_mscoco
}

translator transformer-en-de translation --minutes 60 --epochs 60
translator rnn-en-de translation --model rnn --rate 1e-3 --minutes 60 --epochs 30
translator rnn-without-attention-en-de translation --model rnn-without-attention \
    --rate 1e-3 --minutes 60 --epochs 30
for model in transformer rnn; do
    measure $model-en-de-gold $model-en-de translation --split gold_alignments
done
learn pronunciation pronunciation --minutes 60 --epochs 30
measure pronunciation pronunciation pronunciation
[ -f results/explained.json ] || $regard explain translation \
    "A man in a blue shirt is standing on a ladder cleaning a window." \
    --checkpoint "$runs/transformer-en-de" --json > results/explained.json
