"""Evaluates cases with PyPI's openfeature-flagd-core. Reads chunks from the file that is named, one JSON text per line,
and writes one answer per case."""
import json
import logging
import sys

from openfeature.contrib.tools.flagd.core import FlagdCore
from openfeature.evaluation_context import EvaluationContext
from openfeature.exception import OpenFeatureError

logging.disable(logging.CRITICAL)
for line in open(sys.argv[1], encoding="utf-8"):
    chunk = json.loads(line)
    core = FlagdCore()
    core.set_flags(json.dumps(chunk["file"]))
    for case in chunk["contexts"]:
        context = dict(case["context"])
        key = context.pop("targetingKey", None)
        try:
            told = core.resolve_string_value(case["flag"], "code default", EvaluationContext(key, context))
            reason = getattr(told.reason, "value", told.reason)
            answer = [told.variant, told.value, reason, None]
        except OpenFeatureError as error:
            answer = [None, "code default", "ERROR", error.error_code.value]
        except Exception as error:
            answer = [None, "code default", "ERROR", "raised " + type(error).__name__]
        print(json.dumps(answer))
