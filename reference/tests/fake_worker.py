"""A worker without a model that answers or misbehaves as its argument selects; also a minimal example of the protocol."""

import json
import os
import signal
import subprocess
import sys
import time

requests = os.fdopen(int(os.environ["TFCHECK_REQUEST_FD"]))
replies = os.fdopen(int(os.environ["TFCHECK_REPLY_FD"]), "w")


def reply(**message):
    replies.write(json.dumps(message) + "\n")
    replies.flush()


def failed(kind):
    reply(**{"is": "failed"}, kind=kind, error="ValueError", message="no luck", traceback="Traceback: no luck")


def grandchild():
    # Ignores SIGTERM, so that only SIGKILL to the whole group ends it.
    child = subprocess.Popen(
        [sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"],
        stdout=subprocess.PIPE,
    )
    child.stdout.readline()
    print("grandchild", child.pid, flush=True)


behaviour = sys.argv[1]
for line in requests:
    request = json.loads(line)
    if request["do"] == "exit":
        sys.exit(0)
    print("asked to", request["do"], flush=True)
    if behaviour == "answer":
        reply(**{"is": "ready"}, libraries={"fake": "1"}, load_ns=1, notes=[json.dumps(dict(os.environ))])
    elif behaviour == "answer and leave a child":
        grandchild()
        reply(**{"is": "ready"}, libraries={}, load_ns=1, notes=[])
    elif behaviour == "signal":
        os.kill(os.getpid(), int(sys.argv[2]))
        time.sleep(60)
    elif behaviour == "exit":
        sys.exit(int(sys.argv[2]))
    elif behaviour == "hang":
        grandchild()
        time.sleep(60)
    elif behaviour == "garbage":
        replies.write("Loading weights: 100%\n")
        replies.flush()
        time.sleep(60)
    elif behaviour == "unknown fields only":
        reply(what="is this")
        time.sleep(60)
    elif behaviour == "another reply":
        reply(**{"is": "traced"})
        time.sleep(60)
    elif behaviour == "close":
        replies.close()
        time.sleep(60)
    elif behaviour == "half a line":
        replies.write('{"is": "rea')
        replies.flush()
        sys.exit(3)
    elif behaviour == "reply and die":
        reply(**{"is": "ready"}, libraries={}, load_ns=1, notes=[])
        os.kill(os.getpid(), signal.SIGKILL)
    else:
        failed(behaviour)
