"""A load balancer written from the seed's text alone: five packed structs over ZeroMQ, nothing of ours.

It binds a CURVE socket with a certificate in the zcert format, waits for a worker's first words, sends one bare
57-byte worker_request followed by the program, and prints every worker_status that comes back.

usage: seed_load_balancer.py DIRECTORY PROGRAM
"""

import struct
import sys
import uuid

import zmq
import zmq.auth

GENERIC = struct.Struct("<BQQQ")
WORKER_REQUEST = struct.Struct("<BQQQQQQQ")
WORKER_STATUS = struct.Struct("<BQQQQQB")
SUCCEEDED, FAILED = 5, 6
PATIENCE_MS = 20_000


def halves(value):
    return value.int >> 64, value.int & (2**64 - 1)


def main(directory, program):
    me, job = uuid.uuid4(), uuid.uuid4()
    _, secret = zmq.auth.create_certificates(directory, "seed_load_balancer")
    public_key, secret_key = zmq.auth.load_certificate(secret)
    router = zmq.Context.instance().socket(zmq.ROUTER)
    router.curve_server = True
    router.curve_publickey, router.curve_secretkey = public_key, secret_key
    router.linger = 0
    router.rcvtimeo = PATIENCE_MS
    port = router.bind_to_random_port("tcp://127.0.0.1")
    print("bound", f"tcp://127.0.0.1:{port}", public_key.decode(), flush=True)

    worker, first = router.recv_multipart()
    assert first[0] == 2, f"the worker's first words are of type {first[0]}, not worker_status"
    assert len(first) >= WORKER_STATUS.size
    print("hello", first[: WORKER_STATUS.size].hex(), flush=True)

    assert WORKER_REQUEST.size == 57 and WORKER_STATUS.size == 42
    header = WORKER_REQUEST.pack(1, *halves(me), 57, *halves(job), len(program), 0)
    router.send_multipart([worker, header + program])
    while True:
        _, frame = router.recv_multipart()
        kind, upper, lower, header_length = GENERIC.unpack_from(frame)
        if kind != 2:
            print("other", kind, frame[GENERIC.size :], flush=True)
            continue
        assert header_length >= 42
        *_, job_upper, job_lower, state = WORKER_STATUS.unpack_from(frame)
        if (job_upper, job_lower) != halves(job):
            continue
        print("status", state, frame[: WORKER_STATUS.size].hex(), flush=True)
        if state in (SUCCEEDED, FAILED):
            return


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2].encode())
