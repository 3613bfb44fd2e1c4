"""Send a server one real request: Triton's own readiness stays true after a python step has died.

`python -m llmcfsr_merlin.serving.probe [http://127.0.0.1:8000]` exits with 0 if it answers: a container's health check.
"""

import http.client
import json
import sys
import urllib.error
import urllib.request

from llmcfsr_merlin.serving.repository import FRONT

# Loopback requests never go through a proxy, whatever http_proxy says.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def probe(http_url: str, timeout: float, request_id: str = "") -> str | None:
    """None if an empty history is answered within `timeout` seconds, else what went wrong, in a few words."""
    body = {
        "id": request_id,
        "inputs": [{"name": "HISTORY", "datatype": "BYTES", "shape": [1, 1], "data": [""]}],
        "outputs": [{"name": "ITEMS"}],
    }
    request = urllib.request.Request(f"{http_url}/v2/models/{FRONT}/infer", data=json.dumps(body).encode())
    try:
        with DIRECT.open(request, timeout=timeout) as reply:
            found = json.load(reply)
    except urllib.error.HTTPError as error:
        return f"answers {error.code}: {' '.join(error.read(300).decode(errors='replace').split())}"
    except TimeoutError:
        return f"gave no answer within {timeout:.0f} s"
    except (OSError, http.client.HTTPException, ValueError) as error:  # refused, closed in the middle, no JSON
        return f"does not answer ({getattr(error, 'reason', error)})"
    return None if found.get("outputs") else f"answers without items: {str(found)[:200]}"


def main() -> int:
    reason = probe(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000", timeout=10)
    if reason:
        print(f"the server {reason}", file=sys.stderr)
    return int(reason is not None)


if __name__ == "__main__":
    sys.exit(main())
