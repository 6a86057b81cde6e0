"""What holds for every case that hypothesis draws: properties.py, for 200 of them."""

from properties import explore


def test_any_layer_agrees_with_the_oracle(seed):
    explore(200, seed)
