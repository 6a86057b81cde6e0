"""How much arithmetic a pass holds, and how many bytes it cannot avoid to move.

The arithmetic is that of the matrix products, and nothing else.

Per direction, step and sequence, with G gates (RNN 1, GRU 3, LSTM 4), a product with the [G*H, I]
input weights costs 2*G*H*I floating-point operations, one with the [G*H, H] recurrent weights
2*G*H*H. A layer above another reads the D*H features of both directions below, in place of I. The
forward pass does one of each. Training adds dx and dW_ih (2*G*H*I each), and dW_hh and the product
that carries the gradient back in time (2*G*H*H each).
"""

from __future__ import annotations

from benchmarks.measure.cases import Case

NUM_GATES = {"rnn": 1, "gru": 3, "lstm": 4}
ELEMENT_BYTES = {"fp16": 2, "bf16": 2, "fp32": 4, "tf32": 4, "fp64": 8}


def input_sizes(case: Case) -> list[int]:
    """The features that each layer reads."""
    above = [case.num_directions * case.hidden_size] * (case.num_layers - 1)
    return [case.input_size, *above]


def products(case: Case) -> dict[str, int]:
    """Floating-point operations of each product of the pass, by name."""
    rows = case.num_directions * case.seq_len * case.batch_size
    gate_rows = NUM_GATES[case.cell] * case.hidden_size
    input_product = 2 * rows * gate_rows * sum(input_sizes(case))
    recurrent_product = 2 * rows * gate_rows * case.hidden_size * case.num_layers
    forward = {"input_projection": input_product, "recurrent": recurrent_product}
    if not case.training:
        return forward
    return forward | {
        "d_input": input_product,
        "d_weight_ih": input_product,
        "d_weight_hh": recurrent_product,
        "recurrent_backward": recurrent_product,
    }


def flops(case: Case) -> int:
    """Floating-point operations of the whole pass."""
    return sum(products(case).values())


def compulsory_bytes(case: Case) -> int:
    """Bytes of all that a pass is given and leaves behind, each counted once.

    Inference: the input, both weights and biases, and the output. Training adds the gradient of
    each: the output's comes in, the others go out. What is kept between forward and backward, and
    what is read twice, is an implementation's own affair and not counted.
    """
    rows = case.seq_len * case.batch_size
    output_size = case.num_directions * case.hidden_size
    gate_rows = case.num_directions * NUM_GATES[case.cell] * case.hidden_size
    weights = gate_rows * sum(size + case.hidden_size + 2 for size in input_sizes(case))
    elements = rows * (case.input_size + output_size) + weights
    return ELEMENT_BYTES[case.dtype] * elements * (2 if case.training else 1)
