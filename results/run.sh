#!/bin/sh
# Trains and measures every model of docs/results.md, one after the other, or those that are named.
# Killed and started again, it goes on where it was. Runs are kept in $RUNS, default: runs/.
#
#   sh results/run.sh [NAME …] && python docs/results.py
set -eu
cd "$(dirname "$0")/.."
runs=${RUNS:-runs}
regard=${REGARD:-regard}
names="$*"

chosen() { # name of a run
    case " ${names:-$1} " in *" $1 "*) ;; *) return 1 ;; esac
}

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
    chosen "$1" || return 0
    model=$1
    shift
    learn "$model" translation "$@"
    measure "$model" "$model" translation
    measure "$model-greedy" "$model" translation --beam 1
    measure "$model-2017" "$model" translation --split test_2017_flickr
    measure "$model-coco" "$model" translation --split test_2017_mscoco
    # What attends can be asked where it looks.
    [ "$model" = rnn-without-attention-en-de ] ||
        measure "$model-gold" "$model" translation --split gold_alignments
}

translator transformer-en-de --epochs 39
if chosen transformer-en-de && [ ! -f results/explained.json ]; then
    $regard explain translation \
        "A man in a blue shirt is standing on a ladder cleaning a window." \
        --checkpoint "$runs/transformer-en-de" --json > results/explained.json
fi
if chosen pronunciation; then
    learn pronunciation pronunciation --epochs 20
    measure pronunciation pronunciation pronunciation
fi
translator rnn-en-de --model rnn --rate 1e-3 --epochs 20
translator rnn-without-attention-en-de --model rnn-without-attention --rate 1e-3 --epochs 20
