"""XML signatures, as far as NVIDIA's reference measurements use them, on the standard library.

One form is accepted and no other: an enveloped signature over the whole document, by
inclusive canonicalisation without comments (Canonical XML 1.0 and 1.1 agree where no xml:
attribute occurs, and none may), SHA-384 and ECDSA on P-384 (XML-DSig 1.1 §4, §6, §8).

A document type, an entity or a processing instruction is refused while it is read, so
nothing expands; size, depth and number of elements are bounded. What is canonicalised is the
same tree that values are later read from, and only one signature may occur, directly below
the root: what is read is what was signed.
"""

from __future__ import annotations

import binascii
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NoReturn
from xml.parsers import expat

from blindai.errors import EvidenceError

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_XML_BYTES: Final = 512 << 10
_MAX_DEPTH: Final = 16
_MAX_ELEMENTS: Final = 4096
_MAX_NAMESPACES: Final = 32
_MAX_CERTIFICATES: Final = 8

DS: Final = "http://www.w3.org/2000/09/xmldsig#"
C14N_11: Final = "http://www.w3.org/2006/12/xml-c14n11"
ENVELOPED: Final = "http://www.w3.org/2000/09/xmldsig#enveloped-signature"
ECDSA_SHA384: Final = "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384"
SHA384: Final = "http://www.w3.org/2001/04/xmldsig-more#sha384"
_C14N: Final = frozenset({C14N_11, "http://www.w3.org/TR/2001/REC-xml-c14n-20010315"})


@dataclass(slots=True, eq=False)
class Element:
    """One element of a parsed document.

    Attributes:
        name: As written, with its prefix.
        namespace: What the prefix stands for; "" for none.
        scope: Every namespace in scope: prefix → namespace, "" for the default.
        attributes: (namespace, local name) → (name as written, value), namespaces left out.
        children: Elements and text, in order.
    """

    name: str
    namespace: str
    scope: Mapping[str, str]
    attributes: Mapping[tuple[str, str], tuple[str, str]]
    children: list[Element | str] = field(default_factory=list)

    @property
    def local_name(self) -> str:
        """The name without its prefix."""
        return self.name.rpartition(":")[2]

    @property
    def elements(self) -> list[Element]:
        """The children that are elements."""
        return [child for child in self.children if isinstance(child, Element)]

    @property
    def text(self) -> str:
        """The text directly inside."""
        return "".join(child for child in self.children if isinstance(child, str))

    def attribute(self, name: str, namespace: str = "") -> str | None:
        """Return the value of an attribute, or `None`."""
        found = self.attributes.get((namespace, name))
        return None if found is None else found[1]


@dataclass(frozen=True, slots=True)
class EnvelopedSignature:
    """A signature over the document that holds it; not verified yet.

    Attributes:
        signed_info: Canonical bytes under the signature.
        value: r and s, 48 bytes each.
        digest: SHA-384 that the signature states of the document.
        content: Canonical bytes of the document without the signature.
        certificates: DER, the signer's first; nobody signed these.
    """

    signed_info: bytes
    value: bytes
    digest: bytes
    content: bytes
    certificates: tuple[bytes, ...]


def parse_xml(data: bytes) -> Element:
    """Read a document without document type, entities or processing instructions.

    Raises:
        EvidenceError: If it is anything else, or too large.
    """
    if len(data) > MAX_XML_BYTES:
        msg = f"XML: {len(data)} bytes, at most {MAX_XML_BYTES} are accepted"
        raise EvidenceError(msg)
    builder = _TreeBuilder()
    parser = expat.ParserCreate("UTF-8")
    parser.ordered_attributes = True
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.text
    parser.StartDoctypeDeclHandler = _refuse_doctype
    parser.ProcessingInstructionHandler = _refuse_instruction
    try:
        parser.Parse(data, True)  # noqa: FBT003 (the last piece; expat takes no keyword)
    except (expat.ExpatError, ValueError) as error:
        msg = f"XML: malformed ({error})"
        raise EvidenceError(msg) from error
    if builder.root is None:
        msg = "XML: no element"
        raise EvidenceError(msg)
    return builder.root


def canonicalize(element: Element, *, omit: Element | None = None) -> bytes:
    """Return an element and all in it in canonical form, without `omit` (Canonical XML §2)."""
    out: list[str] = []
    _write(element, {}, omit, out)
    return "".join(out).encode()


def parse_signature(root: Element) -> EnvelopedSignature:
    """Read the one signature of a document, which lies directly below its root.

    Raises:
        EvidenceError: If there is none, more than one, or one of another form.
    """
    signatures = [e for e in root.elements if _is_ds(e, "Signature")]
    if len(signatures) != 1 or _count_signatures(root) != 1:
        msg = "XML signature: expected exactly one, directly below the root"
        raise EvidenceError(msg)
    signed_info, value, key_info = _parts(signatures[0], "SignedInfo", "SignatureValue", "KeyInfo")
    method, algorithm, reference = _parts(
        signed_info, "CanonicalizationMethod", "SignatureMethod", "Reference"
    )
    _expect_algorithm(method, _C14N)
    _expect_algorithm(algorithm, {ECDSA_SHA384})
    (x509_data,) = _parts(key_info, "X509Data")
    certificates = [e for e in x509_data.elements if _is_ds(e, "X509Certificate")]
    if not 1 <= len(certificates) <= _MAX_CERTIFICATES:
        msg = f"XML signature: {len(certificates)} certificates, 1 to {_MAX_CERTIFICATES} expected"
        raise EvidenceError(msg)
    return EnvelopedSignature(
        signed_info=canonicalize(signed_info),
        value=_base64(value),
        digest=_parse_reference(reference),
        content=canonicalize(root, omit=signatures[0]),
        certificates=tuple(_base64(certificate) for certificate in certificates),
    )


def _parse_reference(reference: Element) -> bytes:
    if reference.attribute("URI") != "":
        msg = "XML signature: it has to cover the whole document"
        raise EvidenceError(msg)
    transforms, digest_method, digest_value = _parts(
        reference, "Transforms", "DigestMethod", "DigestValue"
    )
    steps = transforms.elements
    if not 1 <= len(steps) <= 2:  # noqa: PLR2004 (enveloped, and the canonical form)
        msg = f"XML signature: {len(steps)} transforms, 1 or 2 expected"
        raise EvidenceError(msg)
    _parts(transforms, *["Transform"] * len(steps))
    _expect_algorithm(steps[0], {ENVELOPED})
    for step in steps[1:]:
        _expect_algorithm(step, _C14N)
    _expect_algorithm(digest_method, {SHA384})
    return _base64(digest_value)


def _parts(element: Element, *names: str) -> list[Element]:
    """Return the children, which have to be exactly these elements of XML-DSig."""
    found = element.elements
    if len(found) != len(names) or not all(
        _is_ds(child, name) for child, name in zip(found, names, strict=True)
    ):
        msg = f"XML signature: {element.local_name} has to hold {', '.join(names)}"
        raise EvidenceError(msg)
    return found


def _expect_algorithm(element: Element, accepted: frozenset[str] | set[str]) -> None:
    # A parameter (a child element) could change what the algorithm means.
    if element.attribute("Algorithm") not in accepted or element.elements:
        msg = f"XML signature: unsupported {element.local_name}"
        raise EvidenceError(msg)


def _base64(element: Element) -> bytes:
    if element.elements:
        msg = f"XML signature: {element.local_name} has to hold text only"
        raise EvidenceError(msg)
    try:
        return binascii.a2b_base64("".join(element.text.split()), strict_mode=True)
    except ValueError as error:
        msg = f"XML signature: {element.local_name} is not Base64"
        raise EvidenceError(msg) from error


def _is_ds(element: Element, local_name: str) -> bool:
    return element.namespace == DS and element.local_name == local_name


def _count_signatures(element: Element) -> int:
    return _is_ds(element, "Signature") + sum(_count_signatures(e) for e in element.elements)


def _write(
    element: Element, rendered: Mapping[str, str], omit: Element | None, out: list[str]
) -> None:
    out.append(f"<{element.name}")
    for prefix in sorted(element.scope):
        uri = element.scope[prefix]
        if rendered.get(prefix, "") != uri:
            name = f"xmlns:{prefix}" if prefix else "xmlns"
            out.append(f' {name}="{_escape_attribute(uri)}"')
    for key in sorted(element.attributes):
        name, value = element.attributes[key]
        out.append(f' {name}="{_escape_attribute(value)}"')
    out.append(">")
    for child in element.children:
        if isinstance(child, str):
            out.append(_escape_text(child))
        elif child is not omit:
            _write(child, element.scope, omit, out)
    out.append(f"</{element.name}>")


def _escape_text(text: str) -> str:
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return text.replace("\r", "&#xD;")


def _escape_attribute(text: str) -> str:
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return text.replace("\t", "&#x9;").replace("\n", "&#xA;").replace("\r", "&#xD;")


class _TreeBuilder:
    """Takes expat's events and keeps what canonicalisation needs: prefixes and scopes."""

    def __init__(self) -> None:
        self.root: Element | None = None
        self._open: list[Element] = []
        self._count = 0

    def start(self, name: str, attributes: list[str]) -> None:
        self._count += 1
        if self._count > _MAX_ELEMENTS or len(self._open) >= _MAX_DEPTH:
            msg = f"XML: more than {_MAX_ELEMENTS} elements, or deeper than {_MAX_DEPTH}"
            raise EvidenceError(msg)
        pairs = list(zip(attributes[::2], attributes[1::2], strict=True))
        scope = _extend_scope(self._open[-1].scope if self._open else {"": ""}, pairs)
        found: dict[tuple[str, str], tuple[str, str]] = {}
        for written, value in pairs:
            prefix, _, local = written.rpartition(":")
            if written == "xmlns" or prefix == "xmlns":
                continue
            # The default namespace does not apply to attributes.
            key = (_resolve(prefix, scope) if prefix else "", local)
            if key in found:
                msg = f"XML: attribute {local} appears twice"
                raise EvidenceError(msg)
            found[key] = (written, value)
        element = Element(name, _resolve(name.rpartition(":")[0], scope), scope, found)
        if self._open:
            self._open[-1].children.append(element)
        else:
            self.root = element
        self._open.append(element)

    def end(self, _name: str) -> None:
        self._open.pop()

    def text(self, text: str) -> None:
        self._open[-1].children.append(text)


def _extend_scope(outer: Mapping[str, str], pairs: list[tuple[str, str]]) -> Mapping[str, str]:
    declared: dict[str, str] = {}
    for written, value in pairs:
        prefix, _, local = written.rpartition(":")
        if written == "xmlns":
            declared[""] = value
        elif prefix == "xmlns":
            if not value or local in {"xml", "xmlns"}:
                msg = f"XML: the prefix {local[:32]} cannot be declared so"
                raise EvidenceError(msg)
            declared[local] = value
    if len(outer) + len(declared) > _MAX_NAMESPACES:
        msg = f"XML: more than {_MAX_NAMESPACES} namespaces"
        raise EvidenceError(msg)
    return {**outer, **declared} if declared else outer


def _resolve(prefix: str, scope: Mapping[str, str]) -> str:
    # "xml" is never in scope: its attributes are inherited in ways that nothing here needs.
    if prefix not in scope:
        msg = f"XML: the prefix {prefix[:32]} is not declared"
        raise EvidenceError(msg)
    return scope[prefix]


def _refuse_doctype(*_: object) -> NoReturn:
    msg = "XML: a document type is not accepted"
    raise EvidenceError(msg)


def _refuse_instruction(*_: object) -> NoReturn:
    msg = "XML: a processing instruction is not accepted"
    raise EvidenceError(msg)
