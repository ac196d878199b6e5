"""A peer that knows the five structs of the seed and nothing else of Ziggurat: it fetches one file from a storage node.

    seed_peer.py make DIR NAME                  makes DIR/NAME.key and DIR/NAME.key_secret (ZeroMQ certificate files)
    seed_peer.py fetch ENDPOINT SERVER.key MY.key_secret FILE_UUID OUTPUT [req]

`fetch` sends the bare file_request (41 bytes) from a DEALER, or from a REQ socket, and writes the content to OUTPUT.
It prints one line of JSON: the frames' sizes and what the response says. Exit 3 = the node answered with another message.
"""

import json
import struct
import sys
import uuid

import zmq
import zmq.auth

# struct generic_message, file_request, file_response: little-endian, packed.
GENERIC = struct.Struct("<BQQQ")
FILE_REQUEST = struct.Struct("<BQQQQQ")
FILE_RESPONSE = struct.Struct("<BQQQQQQ")
assert (GENERIC.size, FILE_REQUEST.size, FILE_RESPONSE.size) == (25, 41, 49)
TIMEOUT_MS = 20_000


def halves(name):
    return name.int >> 64, name.int & (1 << 64) - 1


def fetch(endpoint, server_certificate, my_certificate, file_uuid, output, kind):
    server_public, _ = zmq.auth.load_certificate(server_certificate)
    my_public, my_secret = zmq.auth.load_certificate(my_certificate)
    socket = zmq.Context().socket(zmq.REQ if kind == "req" else zmq.DEALER)
    socket.curve_serverkey = server_public
    socket.curve_publickey, socket.curve_secretkey = my_public, my_secret
    socket.linger = 0
    socket.rcvtimeo = socket.sndtimeo = TIMEOUT_MS
    socket.connect(endpoint)

    me, wanted = uuid.uuid4(), uuid.UUID(file_uuid)
    socket.send(FILE_REQUEST.pack(3, *halves(me), FILE_REQUEST.size, *halves(wanted)))
    frames = socket.recv_multipart()

    message_type, _, _, header_length = GENERIC.unpack_from(frames[0])
    said = {"type": message_type, "header_length": header_length, "frames": [len(frame) for frame in frames]}
    if message_type == 4:
        _, _, _, _, upper, lower, file_length = FILE_RESPONSE.unpack_from(frames[0])
        said["file"] = str(uuid.UUID(int=upper << 64 | lower))
        said["file_length"] = file_length
        # What is behind the header in its own frame would be body; the content is in the frames after it.
        content = frames[0][header_length:] + b"".join(frames[1:])
        with open(output, "wb") as file:
            file.write(content)
    else:
        said["text"] = frames[0][header_length:].decode()
    print(json.dumps(said))
    return 0 if message_type == 4 else 3


def main(arguments):
    if arguments[:1] == ["make"] and len(arguments) == 3:
        zmq.auth.create_certificates(arguments[1], arguments[2])
        return 0
    if arguments[:1] == ["fetch"] and len(arguments) in (6, 7):
        return fetch(*arguments[1:6], kind=arguments[6] if len(arguments) == 7 else "dealer")
    print(__doc__, file=sys.stderr)
    return 2


sys.exit(main(sys.argv[1:]))
