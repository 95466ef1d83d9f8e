"""How Python gets into kernels that were compiled ahead: an extension module, written as LLVM's text.

For each kernel one function that Python calls (METH_FASTCALL): it takes the integers out of its arguments, calls the kernel as numba's
calling convention has it, and makes a Python object of what comes back. ctypes does the same at six times the price of numba's own way
(10 arguments: 2.9 us, 0.5 us, this: see README), and a block costs several calls. All of Python that is used is in its stable ABI
(docs.python.org/3/c-api/stable.html), so one shared object does for every version from 3.11 on.
"""

from __future__ import annotations

from dataclasses import dataclass

_METH_FASTCALL = 0x0080  # methodobject.h
_ABI_VERSION = 3  # modsupport.h, PYTHON_ABI_VERSION

_METHOD = "{ptr, ptr, i32, ptr}"
"""PyMethodDef: name, function, flags, documentation."""
_DEFINITION = "i64 1, ptr null, ptr null, i64 0, ptr null, ptr NAME, ptr null, i64 -1, ptr @methods, ptr null, ptr null, ptr null, ptr null"
"""PyModuleDef: its base (PyObject_HEAD, m_init, m_index, m_copy), name, documentation, size, methods, slots, traverse, clear, free."""

RESULTS = {"int64": "i64", "bool": "i8", "none": "ptr"}
"""What a kernel may return, by numba's names, and the cell that it is left in."""


@dataclass(frozen=True)
class Kernel:
    name: str  # as it is asked for
    symbol: str  # of what numba made of it
    n_arguments: int
    result: str  # a key of RESULTS


_HEAD = """
@PyExc_TypeError = external global ptr
@_Py_NoneStruct = external global i8
declare i64 @PyLong_AsLongLong(ptr)
declare ptr @PyLong_FromLongLong(i64)
declare ptr @PyBool_FromLong(i64)
declare ptr @PyErr_Occurred()
declare void @PyErr_SetString(ptr, ptr)
declare void @Py_IncRef(ptr)
declare ptr @PyModule_Create2(ptr, i32)
declare i32 @PyModule_AddStringConstant(ptr, ptr, ptr)

define internal i1 @take(ptr %arguments, i64 %i, ptr %to) alwaysinline {
  %at = getelementptr ptr, ptr %arguments, i64 %i
  %object = load ptr, ptr %at
  %value = call i64 @PyLong_AsLongLong(ptr %object)
  store i64 %value, ptr %to
  %doubtful = icmp eq i64 %value, -1
  br i1 %doubtful, label %ask, label %good
ask:
  %error = call ptr @PyErr_Occurred()
  %failed = icmp ne ptr %error, null
  ret i1 %failed
good:
  ret i1 false
}
"""

_RETURN = {
    "int64": ["%value = load i64, ptr %cell", "%object = call ptr @PyLong_FromLongLong(i64 %value)"],
    "bool": ["%byte = load i8, ptr %cell", "%value = zext i8 %byte to i64", "%object = call ptr @PyBool_FromLong(i64 %value)"],
    "none": ["call void @Py_IncRef(ptr @_Py_NoneStruct)", "%object = getelementptr i8, ptr @_Py_NoneStruct, i64 0"],
}


def module_text(kernels: list[Kernel], module: str, made: str) -> str:
    """The extension module of these kernels; its string `made` says what it is."""
    texts = _Texts()
    body = [_way_in(i, kernel, texts) for i, kernel in enumerate(kernels)]
    methods = [f"{_METHOD} {{ptr {texts.add(k.name)}, ptr @way_in_{i}, i32 {_METH_FASTCALL}, ptr null}}" for i, k in enumerate(kernels)]
    methods.append(f"{_METHOD} zeroinitializer")
    definition = _DEFINITION.replace("NAME", texts.add(module))
    return "\n".join(
        (
            _HEAD,
            *body,
            f"@methods = internal global [{len(methods)} x {_METHOD}] [{', '.join(methods)}]",
            f"@definition = internal global {{{', '.join(part.split()[0] for part in definition.split(', '))}}} {{{definition}}}",
            f"define ptr @PyInit_{module}() #0 {{",
            f"  %module = call ptr @PyModule_Create2(ptr @definition, i32 {_ABI_VERSION})",
            "  %none = icmp eq ptr %module, null",
            "  br i1 %none, label %end, label %fill",
            "fill:",
            f"  call i32 @PyModule_AddStringConstant(ptr %module, ptr {texts.add('made')}, ptr {texts.add(made)})",
            "  br label %end",
            "end:",
            "  ret ptr %module",
            "}",
            # It is run to learn whether this CPU is good enough for the rest.
            'attributes #0 = { "target-cpu"="generic" "target-features"="" }',
            *texts.lines,
        )
    )


def _way_in(i: int, kernel: Kernel, texts: _Texts) -> str:
    n, types = kernel.n_arguments, ", i64" * kernel.n_arguments
    refusal = texts.add(f"{kernel.name}() takes {n} integers")
    lines = [
        f"declare i32 @{kernel.symbol}(ptr, ptr{types})",
        f"define internal ptr @way_in_{i}(ptr %self, ptr %arguments, i64 %n) {{",
        f"  %cell = alloca {RESULTS[kernel.result]}",
        "  %exception = alloca ptr",
        f"  %given = alloca [{n} x i64]",
        f"  %right = icmp eq i64 %n, {n}",
        "  br i1 %right, label %take_0, label %refuse",
        "refuse:",
        "  %type = load ptr, ptr @PyExc_TypeError",
        f"  call void @PyErr_SetString(ptr %type, ptr {refusal})",
        "  br label %fail",
        "fail:",
        "  ret ptr null",
    ]
    for j in range(n):
        lines += [
            f"take_{j}:",
            f"  %at_{j} = getelementptr i64, ptr %given, i64 {j}",
            f"  %bad_{j} = call i1 @take(ptr %arguments, i64 {j}, ptr %at_{j})",
            f"  br i1 %bad_{j}, label %fail, label %take_{j + 1}",
        ]
    lines.append(f"take_{n}:")
    lines += [f"  %a_{j} = load i64, ptr %at_{j}" for j in range(n)]
    values = "".join(f", i64 %a_{j}" for j in range(n))
    lines.append(f"  call i32 @{kernel.symbol}(ptr %cell, ptr %exception{values})")  # the status is of no use: kernels raise nothing
    lines += [f"  {line}" for line in _RETURN[kernel.result]]
    return "\n".join((*lines, "  ret ptr %object", "}"))


class _Texts:
    """Strings of C, each a global."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, text: str) -> str:
        raw = text.encode() + b"\0"
        name = f"@text_{len(self.lines)}"
        written = "".join(f"\\{byte:02x}" for byte in raw)
        self.lines.append(f'{name} = internal constant [{len(raw)} x i8] c"{written}"')
        return name
