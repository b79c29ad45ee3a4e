"""A name server for pods.sh: one name, which has the addresses of all pods, as that of a headless service has.

names.py ADDRESS NAME FILE: answers A and AAAA at ADDRESS, port 53, with the addresses in FILE, one a line, read anew for
each question.
"""

import ipaddress
import socket
import struct
import sys

address, name, file = sys.argv[1:]
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind((address, 53))
while True:
    question, client = server.recvfrom(512)
    labels, at = [], 12
    while question[at]:
        labels.append(question[at + 1 : at + 1 + question[at]].decode())
        at += 1 + question[at]
    end = at + 5
    (kind,) = struct.unpack("!H", question[at + 1 : at + 3])
    known = ".".join(labels).lower() in (name, name.split(".")[0])
    with open(file) as lines:
        addresses = [ipaddress.ip_address(line.strip()) for line in lines if line.strip()]
    found = [one for one in addresses if kind == (1 if one.version == 4 else 28)] if known else []
    head = question[:2] + struct.pack("!HHHHH", 0x8580 | (0 if known else 3), 1, len(found), 0, 0)
    rows = [struct.pack("!HHHIH", 0xC00C, kind, 1, 5, len(one.packed)) + one.packed for one in found]
    server.sendto(head + question[12:end] + b"".join(rows), client)
