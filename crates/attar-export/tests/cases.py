"""What the scripts that run cases in an engine share: a list of cases on standard input, what each gave on standard output, as JSON."""

import json
import sys


def answer(run):
    results = []
    for case in json.load(sys.stdin):
        try:
            results.append(run(case))
        except Exception as error:  # the test says which case it was
            results.append({"error": str(error)})
    json.dump(results, sys.stdout)
