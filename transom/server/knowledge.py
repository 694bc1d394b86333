"""Answers from documents: `/ask`, and a chat that names a knowledge base. What a key may not see is not
searched.

Passages are found and judged beside the event loop. What a model writes of them it writes in its engine like
any other answer, and then each sentence is held against the passages; citations are the message's
annotations. Read next: chat, transom.retrieval.ask.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any
from urllib.parse import quote

from transom.errors import Refused, nearest
from transom.retrieval.answer import Answer as Answered
from transom.retrieval.answer import Explained
from transom.retrieval.ask import Inquiry, weighed
from transom.retrieval.places import shown
from transom.retrieval.reranker import Reranker
from transom.retrieval.search import KnowledgeBase
from transom.retrieval.store import Passage
from transom.retrieval.writer import ANSWER_TOKENS, SMALL, Writer, messages
from transom.server_settings import ServerSettings
from transom.units import counted

from .chat_schema import AskBody, ChatBody, Grounding, PassageBody
from .endpoint import DONE, Answer, Call, Frames, frame
from .errors import ApiError
from .prompts import for_chat
from .streaming import all_parts

Made = Callable[..., dict[str, Any]]
"""Makes an object of a chat: what kind, its choices, and what stands beside them."""


def open_knowledge(settings: ServerSettings) -> dict[str, KnowledgeBase]:
    """The knowledge bases of a server by name. Raises Refused for one that cannot be opened or has no own
    name, and for a reranker without any.
    """
    found: dict[str, KnowledgeBase] = {}
    if settings.reranker is not None and not settings.index:
        raise Refused("--reranker puts in order what an index finds; add --index KB")
    ranks = None if settings.reranker is None else Reranker.open(settings.reranker, device=settings.device)
    for said in settings.index:
        named = re.fullmatch(r"([\w.-]+)=(.+)", said)
        place = named[2] if named else said
        base = KnowledgeBase.open(place, reranker=ranks, device=settings.device)
        name = named[1] if named else base.name
        if not re.fullmatch(r"[\w.-]+", name) or name in found:
            raise Refused(f"--index {shown(place)}: give each a name of its own: NAME=FOLDER")
        base.name, found[name] = name, base
    return found


async def ask(call: Call) -> Answer:
    """Return the answer to a question, with citations, or that the documents do not say."""
    asked: AskBody = call.asked
    answer, n_read, n_made = await _answered(call, asked, asked.question)
    shown = Explained(answer) if asked.explain else answer
    told = {"object": "answer", "model": call.served.name if n_made else None, **shown.to_dict()}
    count = {"prompt_tokens": n_read, "completion_tokens": n_made, "total_tokens": n_read + n_made}
    return await call.whole(64 * len(answer.looked_at), lambda: {**told, "usage": count})


async def passage(call: Call) -> Answer:
    """Return a place in a document with what stands around it, where whoever asks may see the document."""
    asked: PassageBody = call.asked
    labels = call.state.labels.get(call.tenant, ())

    def look() -> dict[str, Any]:
        base = _current(call.state.knowledge, asked.knowledge_base)
        document = base.store.document(asked.document, labels)
        if document is None:
            raise ApiError(404, f"{base.name} has no document {ascii(asked.document[:100])} that you may see",
                           param="document", code="document_not_found")  # fmt: skip
        text, start, end = document.text, asked.start, asked.end
        if not start <= end <= len(text):
            raise ApiError(400, f"start and end are {start:,} and {end:,}; the document has {len(text):,}"
                           " characters", param="end")  # fmt: skip
        return {
            "object": "passage", "document": document.name, "title": document.title,
            "n_characters": len(text), "start": start, "end": end,
            "before": text[max(0, start - asked.around) : start],
            "text": text[start:end], "after": text[end : end + asked.around],
        }  # fmt: skip

    found = await call.text_work(look)
    return await call.whole(64, lambda: found)


async def grounded(call: Call, made: Made) -> Answer:
    """Return the assistant's message of a chat that names a knowledge base: the last user message is
    asked.
    """
    asked: ChatBody = call.asked
    last = asked.messages[-1]
    if last.role != "user":
        raise ApiError(
            400, "knowledge_base answers the last message, which has to be a user's", param="messages"
        )
    content = (
        last.content if isinstance(last.content, str) else "\n".join(part.text or "" for part in last.content)
    )
    options = asked.grounding
    assert options is not None
    answer, n_read, n_made = await _answered(call, options, content)
    more = {"annotations": cited(answer), "grounding": answer.to_dict()}
    count = {"prompt_tokens": n_read, "completion_tokens": n_made, "total_tokens": n_read + n_made}
    if asked.stream:
        return _stream(call, made, answer, more, count)
    message = {"role": "assistant", "content": answer.text, "refusal": None, **more}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    return await call.whole(
        64 * len(answer.looked_at), lambda: made("chat.completion", [choice], usage=count)
    )


async def _stream(call: Call, made: Made, answer: Answered, more: dict[str, Any], count: Any) -> Frames:
    """The same in pieces: a sentence that is not checked yet is not sent, so all of them come at once."""
    deltas = [({"role": "assistant", "content": answer.text, "refusal": None, **more}, None), ({}, "stop")]
    usage = {"usage": None} if call.asked.with_usage else {}
    for delta, reason in deltas:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        yield frame(made("chat.completion.chunk", [choice], **usage))
    if call.asked.with_usage:
        yield frame(made("chat.completion.chunk", [], usage=count))
    yield DONE


def cited(answer: Answered) -> list[dict[str, Any]]:
    """Citations as OpenAI's clients know them; the address is the document's name with the characters in it
    (RFC 5147), and the citation itself stands beside it.
    """
    return [
        {
            "type": "url_citation",
            "url_citation": {
                "start_index": start,
                "end_index": end,
                "title": one.document,
                "url": f"{quote(one.document)}#char={one.start},{one.end}",
            },
            "citation": vars(one),
        }
        for (start, end), sentence in zip(answer.spans, answer.sentences, strict=False)
        for one in sentence.citations
    ]


async def _answered(call: Call, options: Grounding, question: str) -> tuple[Answered, int, int]:
    """Answer by quotes, or in the model's words where it is large or was told to; and the tokens it took."""
    labels = call.state.labels.get(call.tenant, ())

    def look() -> Inquiry:
        base = _current(call.state.knowledge, options.knowledge_base)
        return Inquiry(base, question, labels=labels, threshold=options.threshold)

    inquiry = await call.text_work(look)
    served = call.served
    able = served is not None and served.task == "chat"
    large = able and served.model.model.n_parameters >= SMALL
    if options.generate and not able:
        raise ApiError(400, "generate needs a chat model that writes: name one in `model`", param="generate")
    if options.loo and not able:
        raise ApiError(
            400, "loo needs a chat model that reads the passages: name one in `model`", param="loo"
        )
    read = list(inquiry.passages)
    if inquiry.silence or not (options.generate or large):
        answer = await call.text_work(inquiry.quoted)
        return await _with_loo(call, options, inquiry, answer, read), 0, 0

    def requests() -> list[Any]:
        room = served.room - ANSWER_TOKENS
        while True:
            asked = ChatBody(messages=[], temperature=0.0)
            said = messages(question, read)
            made = for_chat(call, said, tools=None, sampled=asked, max_tokens=ANSWER_TOKENS, logprobs=None,
                            grammar=None)  # fmt: skip
            if len(made[0].prompt) <= room or len(read) == 1:
                return made
            read.pop()

    made = await call.text_work(requests)
    (part,) = await all_parts(call, made)
    answer = await call.text_work(lambda: inquiry.checked(part.text, read, options.unsupported))
    answer = await _with_loo(call, options, inquiry, answer, read)
    return answer, len(made[0].prompt), part.n_made


async def _with_loo(
    call: Call, options: Grounding, inquiry: Inquiry, answer: Answered, read: Sequence[Passage]
) -> Answered:
    """What every citation is worth to the model, where it is asked for; answers are written in between."""
    if not options.loo:
        return answer
    writer, losses = Writer(call.served.model), []
    for one in inquiry.leavings(answer, read):
        losses.append(await call.served.worker.between_steps(partial(writer.loss_without, *one), call.tenant))
    return weighed(answer, losses)


def _current(known: dict[str, KnowledgeBase], name: str | None) -> KnowledgeBase:
    """The knowledge base of this name, in its newest generation. Raises ApiError."""
    if name is None and len(known) == 1:
        name = next(iter(known))
    if name is None or name not in known:
        if not known:
            raise ApiError(404, "this server has no knowledge base; the operator adds one with --index KB",
                           param="knowledge_base", code="knowledge_base_not_found")  # fmt: skip
        close = nearest(name[:100], known) if name else ""
        said = (
            f"there is no knowledge base {ascii(name[:100])} here{close}" if name else "name a knowledge base"
        )
        raise ApiError(404 if name else 400, f"{said}; this server has {', '.join(known)}",
                       param="knowledge_base", code="knowledge_base_not_found")  # fmt: skip
    known[name] = known[name].current()
    return known[name]


def told(known: Mapping[str, KnowledgeBase], keys: bool) -> list[str]:
    """What an operator is told of the knowledge bases at the start."""
    lines = []
    for name, base in known.items():
        stats = base.store.stats
        lines.append(
            f"{name}: knowledge base; {counted(stats.n_documents, 'document')}, "
            f"{counted(stats.n_chunks, 'chunk')}"
        )
        if stats.labels and not keys:
            n = sum(stats.labels.values())
            lines.append(
                f"{name}: {n:,} documents have labels, and nobody sees them without a key that has one"
            )
    return lines
