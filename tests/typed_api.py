"""What an editor knows of the public API: read by pyright (`make lint`), never run."""

# pyright: reportUnnecessaryTypeIgnoreComment=error

from __future__ import annotations

from typing import assert_type

import numpy as np
import numpy.typing as npt
from torch import Tensor

import transom
from transom.evaluation.before_after import TunedRun
from transom.evaluation.examine import ExaminedRun
from transom.evaluation.paired import Comparison
from transom.evaluation.perplexity import TextScore
from transom.evaluation.report import Report
from transom.inference.classifier import Classification
from transom.inference.generator import Stream
from transom.inference.request import Completion
from transom.inference.translator import Translation
from transom.training.forecast import Forecast
from transom.training.run import Run

run = transom.train("notes/", model="gpt", budget="10min", out="runs/notes")
assert_type(run, Run)
assert_type(transom.finetune(run.folder, "mine/", method="full"), Run | ExaminedRun | TunedRun)
assert_type(transom.plan("notes/", budget="10min"), Forecast)
assert_type(transom.evaluate(run.folder, beam=5), Report | TextScore)
assert_type(transom.evaluate(run.folder, against="runs/before"), Comparison)

gpt = transom.load(run.model_folder, transom.Generator)
assert_type(gpt, transom.Generator)
assert_type(gpt.generate("Once", max_tokens=5, temperature=0, stop="\n"), Completion)
assert_type(gpt.generate(["Once", "upon"], top_k=5), list[Completion])
assert_type(gpt.generate("Once", n=3, seed=0), list[Completion])
assert_type(gpt.stream("Once", min_p=0.1), Stream)
assert_type(gpt.chat("Hello", max_tokens=5), Completion)
assert_type(gpt.chat([{"role": "user", "content": "Hello"}]).text, str)
assert_type(gpt.logits("Once"), Tensor)
gpt.generate("Once", temprature=0)  # pyright: ignore[reportCallIssue]
gpt.chat("Hello", temperature="hot")  # pyright: ignore[reportArgumentType]

any_of_them = transom.load("runs/notes/model")
if isinstance(any_of_them, transom.Translator):
    assert_type(any_of_them.translate("le 3 mai", beam=1), Translation)
    assert_type(any_of_them.translate(["le 3 mai"]), list[Translation])
elif isinstance(any_of_them, transom.Classifier):
    assert_type(any_of_them.classify("a text", reject_below=0.5), Classification)
    assert_type(any_of_them.classify(["a text"]), list[Classification])
elif isinstance(any_of_them, transom.Embedder):
    assert_type(any_of_them.embed(["a text"]), npt.NDArray[np.float32])
elif isinstance(any_of_them, transom.FillMask):
    assert_type(any_of_them.fill("a <mask>")[0][0].probability, float)
else:
    assert_type(any_of_them, transom.Generator)
