"""Asks nodes for a flag through PyPI's provider for OFREP: TOKEN FLAG USER URL... One line of JSON for each node."""

import json
import sys

from openfeature import api
from openfeature.contrib.provider.ofrep import OFREPProvider
from openfeature.evaluation_context import EvaluationContext

token, flag, user, *urls = sys.argv[1:]
for number, url in enumerate(urls):
    provider = OFREPProvider(url, headers_factory=lambda: {"Authorization": f"Bearer {token}"})
    api.set_provider(provider, str(number))
    context = EvaluationContext(targeting_key=user)
    told = api.get_client(str(number)).get_string_details(flag, "code default", context)
    print(json.dumps([told.value, told.variant, told.reason, told.error_code]), flush=True)
