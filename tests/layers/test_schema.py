"""One schema, stated where it must be: the operators' own is the truth for the stubs, the fake
kernels and the reference."""

import ast
import inspect
import re
from pathlib import Path

import pytest
import torch

import birnn_cuda
from birnn_cuda import ops, reference

# How the stubs write the types of a schema.
TYPES = {
    "Tensor": "Tensor",
    "Optional[Tensor]": "Tensor | None",
    "List[Tensor]": "Sequence[Tensor]",
    "List[bool]": "Sequence[bool]",
    "str": "str",
    "int": "int",
    "bool": "bool",
}
# What of the extension only a build with CUDA has.
WITH_CUDA = {"device_limits"}


def schema_of(name):
    """The names of an operator's arguments, and their types as the stubs write them."""
    arguments = getattr(torch.ops.birnn_cuda, name).default._schema.arguments
    return {argument.name: TYPES[str(argument.type)] for argument in arguments}


def stubs():
    """Of each function of _C.pyi: the names of its arguments, and their types."""
    text = (Path(birnn_cuda.__file__).parent / "_C.pyi").read_text()
    functions = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
    return {
        function.name: {
            argument.arg: ast.unparse(argument.annotation)
            for argument in (*function.args.args, *function.args.kwonlyargs)
        }
        for function in functions
    }


@pytest.mark.parametrize("name", ["forward", "backward"])
def test_fake_kernels_and_stubs_have_the_operators_arguments(name):
    schema = schema_of(name)
    assert len(schema) > 8
    fake = inspect.signature(getattr(ops, f"_{name}_fake")).parameters
    assert list(fake) == list(schema)
    assert {argument: fake[argument].annotation for argument in fake} == schema
    if name in stubs():
        assert stubs()[name] == schema


@pytest.mark.parametrize("function", [reference.forward, reference.forward_with_cell_states])
def test_the_reference_takes_the_operators_arguments_but_for_training_and_precision(function):
    schema = schema_of("forward")
    own = inspect.signature(function).parameters
    assert list(own) == [name for name in schema if name not in ("training", "precision")]
    assert {argument: own[argument].annotation for argument in own}.items() <= schema.items()


def test_stubs_name_what_the_extension_has():
    found = {name for name in vars(ops.extension) if not name.startswith("_")}
    assert found <= set(stubs()) and set(stubs()) - found <= WITH_CUDA


def test_stubs_name_the_arguments_that_the_extension_names():
    named = 0
    for name, arguments in stubs().items():
        function = getattr(ops.extension, name, None)
        signature = re.match(rf"{name}\((.*)\) -> ", (function and function.__doc__) or "")
        if signature is None or "arg0" in signature[1]:
            continue  # positional arguments without names
        names = re.findall(r"(?:^|, )(\w+): ", signature[1])
        assert list(arguments) == names, name
        named += bool(names)
    assert named >= 3
