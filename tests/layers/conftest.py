"""The same random numbers for a test, whichever ran before it."""

import pytest
from numerics import RANDOM

BEGIN = RANDOM.bit_generator.state


@pytest.fixture(autouse=True)
def _numbers():
    RANDOM.bit_generator.state = BEGIN
