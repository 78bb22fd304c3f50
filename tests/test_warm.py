"""The processes that tests begin: what they say arrives whole."""

from __future__ import annotations

import os

import warm

WORDS = """
import sys
for word in range(3000):
    sys.stdout.write(f"{word}\\n")
    sys.stdout.flush()
"""


def test_what_a_process_says_is_whole_whenever_it_is_read():
    with warm.Process("-c", WORDS, environment=os.environ | {"PYTHONUNBUFFERED": "1"}) as process:
        while process.poll() is None:
            said = process.output()[0]
            assert said == "".join(f"{word}\n" for word in range(3000))[: len(said)]
        assert process.output()[0].split() == [str(word) for word in range(3000)]
