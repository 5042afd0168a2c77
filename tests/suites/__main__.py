"""Run the suites, or make the table of their counts.

``python -m tests.suites run --out results.jsonl``, then
``python -m tests.suites table results.jsonl > tests/suites/README.md``
"""

from tests.suites.command import main

if __name__ == "__main__":
    main()
