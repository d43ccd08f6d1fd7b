"""Hypothesis strategies for the nouns of attestation, shared by several test modules."""

from hypothesis import strategies as st

from blindai.attestation.model import DEVICE_PLATFORMS, Evidence, EvidenceBundle, Platform
from blindai.attestation.policy import Acceptance, Pattern, Policy
from blindai.attestation.vocabulary import VOCABULARY

digests = st.binary(min_size=32, max_size=48).filter(any)
# Any text that can stand in a UTF-8 file.
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@st.composite
def patterns(draw, *, exact):
    """Return a pattern; an exact one pins a program."""
    value = draw(digests)
    if exact or draw(st.booleans()):
        return Pattern(value)
    size = len(value)
    return Pattern(value, draw(st.binary(min_size=size, max_size=size).filter(any)))


@st.composite
def blocks(draw, platforms=tuple(Platform)):
    """Return a block that a policy accepts to hold."""
    platform = draw(st.sampled_from(platforms))
    words = VOCABULARY[platform]
    weaknesses = [*sorted(words.weaknesses), "AMD-SB-3015"]
    tolerate = draw(st.frozensets(st.sampled_from(weaknesses)))
    pinned = draw(st.sampled_from(words.identity)) if words.identity else frozenset()
    if "ak-not-certified" in tolerate:
        pinned |= {"ak"}
    others = draw(st.sets(st.sampled_from(sorted(words.measurements)), max_size=3)) - pinned
    measurements = {
        name: tuple(draw(st.lists(patterns(exact=name in pinned), min_size=1, max_size=3)))
        for name in sorted(pinned | others)
    }
    versions = sorted(words.versions)
    return Acceptance(
        platform=platform,
        measurements=measurements,
        minimum=draw(
            st.dictionaries(st.sampled_from(versions), st.integers(0, 2**64 - 1), max_size=3)
            if versions
            else st.just({})
        ),
        chips=tuple(
            draw(st.lists(st.binary(min_size=1, max_size=64), max_size=2))
            if "chip_id" in words.measurements
            else []
        ),
        tolerate=tolerate,
        max_age=draw(st.none() | st.integers(0, 2**40)),
        devices=tuple(draw(st.lists(st.sampled_from(sorted(DEVICE_PLATFORMS)), max_size=2))),
    )


@st.composite
def policies(draw):
    """Return any policy that can be made."""
    servers = tuple(platform for platform in Platform if platform not in DEVICE_PLATFORMS)
    first = draw(blocks(servers))
    rest = draw(st.lists(blocks(), max_size=2))
    models = st.dictionaries(
        text, st.frozensets(st.binary(min_size=32, max_size=32), min_size=1, max_size=2), max_size=3
    )
    return Policy((first, *rest), draw(models))


evidences = st.builds(
    Evidence,
    platform=st.sampled_from(Platform),
    body=st.binary(max_size=64),
    attachments=st.dictionaries(text, st.binary(max_size=32), max_size=4),
)
bundles = st.builds(
    EvidenceBundle,
    evidence=evidences,
    keyset=st.binary(max_size=64),
    certificate=st.binary(max_size=64),
    devices=st.lists(evidences, max_size=3).map(tuple),
)
