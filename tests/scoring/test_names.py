"""Names that a module had in an earlier version."""

import pytest

from gradood.scoring import scores


def test_an_old_name_tells_the_new_one():
    with pytest.raises(AttributeError, match="is now RowScorer"):
        _ = scores.Scorer
