"""The process that renders chat templates: reads a question, renders it in a sandbox, says what is scaffold.

The one idea: what the template wrote itself is told from everything else while it is rendered. Only string
literals of the template, roles and the tokenizer's own token names are `Traced`; a content is an ordinary
string, so the template may strip, test and split it as it likes, and whatever becomes of it is not scaffold.
An operation that Traced does not know gives an ordinary string: trust can be lost, never gained.
Runs as a script of its own (worker_process), and so imports nothing of ours. Read next: chat_template.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from collections.abc import Iterable, Iterator
from datetime import datetime
from functools import lru_cache
from typing import Any, SupportsIndex, cast

import jinja2
import jinja2.debug  # imported by Jinja when something fails, and then it may be too late for that
import jinja2.ext
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

RENDER_SECONDS, COMPILE_SECONDS = 0.25, 2.0
"""Of this process's own CPU time, so that a busy machine refuses no honest template."""
MAX_MEMORY = 512 << 20
MAX_OUTPUT = 4 << 20
MAX_RANGE = 10_000

Spans = tuple[tuple[int, int], ...]
Marks = tuple[tuple[int, int], ...]
NOBODY = -1
"""Where a mark says that what follows belongs to no message."""


class OutOfTime(BaseException):
    """Raised by the timer; no Exception, so that nothing on the way swallows it."""


class TooMuch(Exception):
    """The template writes more than MAX_OUTPUT characters, or asks for a longer range than MAX_RANGE."""


class Traced(str):
    """Text that knows which of its characters the template wrote, and where each message begins.

    Made from plain text it trusts nothing: only `literal` and operations on what it made give trust.
    """

    trust: Spans
    marks: Marks
    __slots__ = ("trust", "marks")

    def __new__(cls, text: str, trust: Spans = (), marks: Marks = ()) -> Traced:
        self = super().__new__(cls, text)
        self.trust, self.marks = trust, marks
        return self

    def __str__(self) -> str:
        return self

    def __add__(self, other: str) -> str:
        return joined((self, other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: str) -> str:
        return joined((other, self)) if isinstance(other, str) else NotImplemented

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        if isinstance(key, slice):
            start, end, step = key.indices(len(self))
            return self.part(start, max(start, end)) if step == 1 else super().__getitem__(key)
        start = range(len(self))[key]
        return self.part(start, start + 1)

    def part(self, start: int, end: int) -> Traced:
        """The characters from start to end."""
        trust = ((max(a, start) - start, min(b, end) - start) for a, b in self.trust)
        marks = tuple((min(max(at, start), end) - start, owner) for at, owner in self.marks)
        return Traced(
            str(str.__getitem__(self, slice(start, end))), tuple(s for s in trust if s[0] < s[1]), marks
        )

    def strip(self, chars: str | None = None) -> str:
        start = len(self) - len(str.lstrip(self, chars))
        return self.part(start, start + len(str.strip(self, chars)))

    def lstrip(self, chars: str | None = None) -> str:
        return self.part(len(self) - len(str.lstrip(self, chars)), len(self))

    def rstrip(self, chars: str | None = None) -> str:
        return self.part(0, len(str.rstrip(self, chars)))

    def join(self, parts: Iterable[str]) -> str:
        return joined(piece for i, part in enumerate(parts) for piece in ((self, part) if i else (part,)))


def literal(text: str) -> Traced:
    """Text that the template, or whoever serves it, wrote."""
    return Traced(text, ((0, len(text)),) if text else ())


def joined(pieces: Iterable[str]) -> Traced:
    """Pieces one after the other, each with the trust it has."""
    texts: list[str] = []
    trust: list[tuple[int, int]] = []
    marks: list[tuple[int, int]] = []
    length = 0
    for piece in pieces:
        if isinstance(piece, Traced):
            for start, end in piece.trust:
                if trust and trust[-1][1] == length + start:
                    trust[-1] = (trust[-1][0], length + end)
                else:
                    trust.append((length + start, length + end))
            marks += [(length + at, owner) for at, owner in piece.marks]
        texts.append(piece)
        length += len(piece)
        if length > MAX_OUTPUT:
            raise TooMuch(f"it writes more than {MAX_OUTPUT >> 20} million characters")
    return Traced("".join(texts), tuple(trust), tuple(marks))


class Generator(CodeGenerator):
    """Compiles a template so that its literals are Traced and its loops over messages are noticed."""

    def _output_const_repr(self, group: Iterable[Any]) -> str:
        return f"environment.literal({''.join(group)!r})"

    def _output_child_to_const(self, node: nodes.Expr, frame: Frame, finalize: Any) -> str:
        if not isinstance(node, nodes.TemplateData):
            raise nodes.Impossible  # nothing is computed while compiling
        return super()._output_child_to_const(node, frame, finalize)

    def visit_Const(self, node: nodes.Const, frame: Frame) -> None:  # noqa: N802
        if isinstance(node.value, str):
            self.write(f"environment.literal({node.value!r})")
        else:
            super().visit_Const(node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        self.write("environment.concat(map(str, (")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write(")))")

    def visit_For(self, node: nodes.For, frame: Frame) -> None:  # noqa: N802
        if isinstance(node.target, nodes.Name):
            node.body.insert(0, self._call("at_message", node, nodes.Name(node.target.name, "load")))
        self.visit(self._call("enter_loop", node), frame)
        super().visit_For(node, frame)
        self.visit(self._call("leave_loop", node), frame)

    def _call(self, name: str, near: nodes.Node, *args: nodes.Expr) -> nodes.Output:
        call = nodes.Call(nodes.EnvironmentAttribute(name), list(args), [], None, None)
        output = nodes.Output([call])
        output.set_lineno(near.lineno, override=True)
        output.set_environment(self.environment)
        return output


class GenerationTag(jinja2.ext.Extension):
    """{% generation %} marks what an assistant wrote; here its body stands as it is."""

    tags = {"generation"}

    def parse(self, parser: Any) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment that transformers gives a chat template, with smaller limits and less within reach."""

    code_generator_class = Generator
    concat = staticmethod(joined)  # pyright: ignore[reportAssignmentType]
    literal = staticmethod(literal)

    def __init__(self) -> None:
        # Not optimized: folding would make plain values of lists of literals.
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            extensions=[GenerationTag, jinja2.ext.loopcontrols],
        )
        own: dict[str, Any] = {
            "range": short_range,
            "raise_exception": refuse,
            "strftime_now": lambda form: datetime.now().strftime(form),
        }
        self.globals = {"dict": dict, "namespace": self.globals["namespace"], **own}
        self.filters["tojson"] = to_json
        self.filters["join"] = join
        self.watch([])

    def watch(self, messages: list[dict[str, Any]]) -> None:
        """Notice from now on when a loop comes to one of these messages."""
        self._place = {id(message): i for i, message in enumerate(messages)}
        self._owners = [NOBODY]

    def enter_loop(self) -> str:
        self._owners.append(self._owners[-1])
        return ""

    def at_message(self, item: Any) -> str:
        owner = self._place.get(id(item))
        if owner is None:
            return ""
        self._owners[-1] = owner
        return Traced("", (), ((0, owner),))

    def leave_loop(self) -> str:
        self._owners.pop()
        return Traced("", (), ((0, self._owners[-1]),))


def short_range(*args: int) -> range:
    """`range`, of at most MAX_RANGE steps."""
    steps = range(*args)
    if len(steps) > MAX_RANGE:
        raise TooMuch(f"range({', '.join(map(str, args))}) has more than {MAX_RANGE:,} steps")
    return steps


def refuse(message: str) -> None:
    """What a template calls to turn a conversation down."""
    raise jinja2.TemplateError(message)


def to_json(value: Any, **settings: Any) -> str:
    """JSON as transformers writes it for templates: no escapes for HTML or for letters beyond ASCII."""
    known = {"ensure_ascii": False, "indent": None, "separators": None, "sort_keys": False}
    if unknown := settings.keys() - known.keys():
        raise TypeError(f"tojson knows no {', '.join(sorted(unknown))}")
    return json.dumps(value, **{**known, **settings})


@jinja2.pass_environment
def join(env: jinja2.Environment, value: Iterable[Any], d: str = "", attribute: Any = None) -> str:
    """Jinja's own filter, keeping trust."""
    if attribute is not None:
        value = (env.getitem(item, attribute) for item in value)
    return Traced.join(cast(Traced, str(d)), map(str, value))


@lru_cache(maxsize=8)
def compiled(template: str) -> jinja2.Template:
    return Sandbox().from_string(template)


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Interrupt Python after so much CPU time, and end the process after twice that, whatever it is at."""
    if not hasattr(signal, "setitimer"):  # Windows: the one who asks ends this process
        yield
        return
    signal.setitimer(signal.ITIMER_VIRTUAL, 2 * seconds)
    signal.setitimer(signal.ITIMER_PROF, seconds, 0.05)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """Render: {template, names, variables} -> {text, trust, marks}, or {refused}.

    With `stops`, pairs of a number of messages and `add_generation_prompt`, each is a rendering of its own:
    {written: [{text, trust, marks}, ...]}.
    """
    try:
        with limited(COMPILE_SECONDS):
            template = compiled(question["template"])
        variables: dict[str, Any] = question["variables"]
        names = {name: literal(token) for name, token in question["names"].items()}
        for message in variables["messages"]:
            message["role"] = literal(message["role"])
        messages, sandbox = variables["messages"], cast(Sandbox, template.environment)
        written: list[dict[str, Any]] = []
        for n_messages, opens_answer in question.get("stops") or [[len(messages), None]]:
            known = {**names, **variables, "messages": messages[:n_messages]}
            if opens_answer is not None:
                known["add_generation_prompt"] = opens_answer
            sandbox.watch(messages)
            with limited(RENDER_SECONDS):
                text = joined([template.render(known)])
            written.append({"text": str.__str__(text), "trust": text.trust, "marks": text.marks})
    except OutOfTime:
        return {"refused": f"it runs longer than {RENDER_SECONDS * 1000:.0f} ms"}
    except MemoryError:
        return {"refused": f"it asks for more than {MAX_MEMORY >> 20} MB"}
    except TooMuch as error:
        return {"refused": str(error)}
    except SecurityError as error:
        return {"refused": f"it reaches for what templates may not touch ({str(error)[:200]})"}
    except jinja2.TemplateSyntaxError as error:
        return {"refused": f"line {error.lineno} is not a template: {str(error.message)[:200]}"}
    except jinja2.TemplateError as error:
        return {"refused": f"it says: {str(error.message)[:300]}"}
    except Exception as error:  # whatever a template may do wrong
        return {"refused": f"it fails ({type(error).__name__}: {str(error)[:200]})"}
    return {"written": written} if question.get("stops") else written[0]


def out_of_time(*_: Any) -> None:
    raise OutOfTime


def confine() -> None:
    """Give up what rendering does not need: memory without end, files to write, core dumps."""
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGPROF, out_of_time)
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))


def main() -> None:
    """Answer until nobody asks any more."""
    confine()
    compiled("{{ ready }}").render(ready="ready")  # what is imported late is imported now
    print("{}", flush=True)
    for line in sys.stdin.buffer:
        try:
            reply = json.dumps(answer(json.loads(line)))
        except (MemoryError, OutOfTime):
            reply = json.dumps({"refused": f"it asks for more than {MAX_MEMORY >> 20} MB"})
        print(reply, flush=True)


if __name__ == "__main__":
    main()
