"""Endorsements: what hardware vendors say about a machine, fetched, kept and stapled.

`request` has the nouns and the one seam to the network, `Get`; `plan` says what evidence
lacks, vendor by vendor; `cache` keeps answers as long as they hold; `endorser` completes
evidence; `stapler` does that for a server in advance. All of it is pure but `https`, and
nothing of it is trusted: `blindai.verify` judges what was attached.
"""

from __future__ import annotations

from blindai.endorsements.endorser import Completed, EndorsedEvidence, Endorser
from blindai.endorsements.https import HttpsGet
from blindai.endorsements.plan import attach, lifetimes, plan
from blindai.endorsements.request import Answer, Get, Kind, Request, Source, Want
from blindai.endorsements.settings import EndorsementSettings
from blindai.endorsements.stapler import Stapler

__all__ = [
    "Answer",
    "Completed",
    "EndorsedEvidence",
    "EndorsementSettings",
    "Endorser",
    "Get",
    "HttpsGet",
    "Kind",
    "Request",
    "Source",
    "Stapler",
    "Want",
    "attach",
    "lifetimes",
    "plan",
]
