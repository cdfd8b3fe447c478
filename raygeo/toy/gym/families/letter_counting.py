"""How often a letter is in a text."""

from collections.abc import Mapping
from typing import Any, ClassVar

from raygeo.toy.gym.family import Family, Level, Span
from raygeo.toy.gym.solver import Solver


class LetterCountingLevel(Level):
    """How many words the text has."""

    words: Span = (2, 4)


class LetterCounting(Family):
    """Word by word, with the count so far: ``see:2;the:3;#### 3``."""

    name: ClassVar[str] = "letter_counting"
    phrases: ClassVar[tuple[str, ...]] = ('How many times does the letter "', '" appear in the text: "', '"?')

    usual: LetterCountingLevel = LetterCountingLevel()
    harder: LetterCountingLevel = LetterCountingLevel(words=(5, 7))

    def solve(self, problem: Mapping[str, Any], solver: Solver) -> int:
        """One line a word."""
        count = 0
        for word in problem["span"]:
            if not solver.skips():
                count += solver.occurrences(problem["target_letter"], word)
                solver.write(f"{word}:{count}")
        return count
