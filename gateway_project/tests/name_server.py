"""A name server for tests: what it does not know does not exist, what it is told to hang hangs."""

from __future__ import annotations

import socket
import threading

import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset


class NameServer:
    """`resolves("a.example", "192.0.2.1")`, `says("a.example", "a text")`, `hangs("b.example")`,
    `is_silent`; over UDP alone."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, name="name-server", daemon=True)
        self.forget()

    def __enter__(self) -> NameServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.sendto(b"", self._socket.getsockname())
        self._thread.join()
        self._socket.close()

    def forget(self) -> None:
        self._known: dict[str, tuple[str, ...]] = {}
        self._texts: dict[str, tuple[str, ...]] = {}
        self._hanging: set[str] = set()
        self.is_silent = False
        self.asked: list[str] = []

    def resolves(self, name: str, *addresses: str) -> None:
        self._known[name] = addresses

    def says(self, name: str, *texts: str) -> None:
        """Its TXT records."""
        self._texts[name] = texts

    def hangs(self, *names: str) -> None:
        """As when the servers of these names do not answer."""
        self._hanging.update(names)

    def _serve(self) -> None:
        while True:
            packet, client = self._socket.recvfrom(4096)
            if not packet:
                return
            query = dns.message.from_wire(packet)
            name = query.question[0].name.to_text(omit_final_dot=True).lower()
            self.asked.append(name)
            if not self.is_silent and name not in self._hanging:
                self._socket.sendto(self._answer(query, name).to_wire(), client)

    def _answer(self, query: dns.message.Message, name: str) -> dns.message.Message:
        answer = dns.message.make_response(query)
        asked = query.question[0]
        kind = dns.rdatatype.to_text(asked.rdtype)
        if kind == "TXT" and name in self._texts:
            texts = [f'"{text}"' for text in self._texts[name]]
            answer.answer.append(dns.rrset.from_text(asked.name, 0, "IN", kind, *texts))
        elif name not in self._known:
            answer.set_rcode(dns.rcode.NXDOMAIN)
        else:
            fitting = [one for one in self._known[name] if (":" in one) == (kind == "AAAA")]
            if fitting:
                answer.answer.append(dns.rrset.from_text(asked.name, 0, "IN", kind, *fitting))
        if not answer.answer:  # how long that may be believed
            about = "ns.example. root.example. 1 0 0 0 0"
            answer.authority.append(dns.rrset.from_text("example.", 0, "IN", "SOA", about))
        return answer
