"""A process that imports torch and transformers once and forks workers, each of which serves a cell by itself.

A request is one message on the socket: a line of JSON with the variables of the worker and the process that asks, and three
descriptors: the worker's requests, its replies and its log. The worker answers with its process id.
"""

import gc
import json
import os
import socket
import time

# The most that a request may hold: a few variables.
LARGEST = 1 << 16
DESCRIPTORS = 3


def import_libraries():
    # Importing makes many objects and little garbage; frozen ones are not visited, and so not copied, in the workers.
    gc.disable()
    import torch
    import transformers

    # They import what all models share.
    for name in ("PreTrainedModel", "AutoConfig", "AutoModelForCausalLM"):
        getattr(transformers, name, None)
    gc.freeze()
    gc.enable()


def serve(connection_number, requests_number, replies_number):
    """Forks workers until tfcheck has ended; returns in each worker only."""
    connection = socket.socket(fileno=connection_number)
    import_libraries()
    while True:
        message, descriptors, _, _ = socket.recv_fds(connection, LARGEST, DESCRIPTORS)
        if not message:
            os._exit(0)
        asked = json.loads(message)
        middle = os.fork()
        if middle == 0:
            # The worker's parent ends at once, so that tfcheck, which adopts orphans, becomes its parent.
            parent = os.getpid()
            if os.fork():
                os._exit(0)
            while os.getppid() == parent:
                time.sleep(0.0002)
            os.setpgid(0, 0)
            is_adopted = os.getppid() == asked["parent"]
            connection.sendall(b"%d\n" % (os.getpid() if is_adopted else 0))
            if not is_adopted:
                os._exit(1)
            os.environ.update(asked["variables"])
            # Its number is one of those that the worker's pipes get.
            connection.detach()
            requests, replies, log = descriptors
            for descriptor, number in ((requests, requests_number), (replies, replies_number), (log, 1), (log, 2)):
                os.dup2(descriptor, number)
            for descriptor in descriptors:
                os.close(descriptor)
            return
        os.waitpid(middle, 0)
        for descriptor in descriptors:
            os.close(descriptor)
