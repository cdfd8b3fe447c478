import pytest
from pydantic import ValidationError

from raygeo.search.settings import Objective


def test_the_earlier_name_of_an_objective_is_refused_with_its_present_one():
    with pytest.raises(ValidationError, match="sharpness is now top_eigenvalue"):
        Objective(metric="sharpness")
