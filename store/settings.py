"""Settings of the service, from the environment (`GRAFT_…`). Each limit stands here and nowhere else."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, urlsplit

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
)

Names = Annotated[list[str], NoDecode]
Seconds = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
SILENT_SECONDS = 30.0
"""A worker that was not heard of for this long counts as gone."""


class Settings(BaseSettings):
    """Every default suits one machine; `GRAFT_DATABASE_URL` and `GRAFT_BROKER_URL` make it a production stack."""

    model_config = SettingsConfigDict(env_prefix="GRAFT_", frozen=True, extra="ignore")

    data_dir: Path = Field(default=Path("graft-data"), description="Where the database, checkpoints and caches lie.")
    inputs_dir: Path | None = Field(default=None, description="Below it lie datasets and weights; by default DATA_DIR/inputs.")
    database_url: str = Field(default="", description="By default SQLite, DATA_DIR/graft.db.")
    broker_url: str = Field(default="", description="By default the file system, DATA_DIR/hints.")
    secrets_dir: Path | None = Field(
        default=None,
        description="A file in it sets what the environment does not, by its name: `graft_database_password` for one.",
    )
    database_password: SecretStr | None = Field(default=None, description="Put into the database's URL; best as a file.")
    broker_password: SecretStr | None = Field(default=None, description="Put into the broker's URL; best as a file.")
    plugins: Names = Field(default=[], description="Modules that `python:MODULE:CLASS` may name, separated by commas.")
    plugins_dir: Path | None = Field(
        default=None, description="Put first on the import path of training processes; by default DATA_DIR/plugins."
    )
    download: bool = Field(default=False, description="Whether datasets and weights that are not there may be downloaded.")
    download_hosts: Names = Field(
        default=[
            "download.pytorch.org",
            "github.com",
            "objects.githubusercontent.com",
            "release-assets.githubusercontent.com",
            "dl.fbaipublicfiles.com",
            "huggingface.co",
            "*.huggingface.co",
            "*.hf.co",
        ],
        description="Hosts that weights may come from, separated by commas: `NAME`, `NAME:PORT`, `*.NAME` for what is below it.",
    )
    download_private: bool = Field(
        default=False, description="Whether these hosts may have private addresses: for a mirror in your own network."
    )
    hf_token: SecretStr | None = Field(
        default=None, description="Opens private and gated repositories of the Hugging Face hub; best as a file."
    )
    download_max_bytes: Count = Field(default=20 << 30, description="Bytes that a file of weights may have to be downloaded.")
    download_min_rate: Annotated[int, Field(ge=0)] = Field(
        default=10 << 10,
        description="Bytes a second, over a minute. What comes more slowly is asked for again, and soon given up; 0 waits.",
    )

    queues: Annotated[Names, Field(min_length=1)] = Field(
        default=["default"], description="Queues that a worker serves, separated by commas."
    )
    worker_name: str = Field(
        default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}",
        description="By default HOST-PID. A worker gives back at once what an earlier one of its name had taken.",
    )
    gpus: str = Field(
        default="auto",
        description=(
            "`auto`, or the GPUs a worker may use, by the numbers that nvidia-smi gives them, separated by commas; empty for "
            "none. `cpu,cpu` has the CPU stand for two, to try jobs of several GPUs where there are none."
        ),
    )
    cpu_slots: Annotated[int, Field(ge=0, le=1024)] = Field(default=1, description="Jobs at a time on the CPU.")
    threads: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="CPU threads of a trainer; by default the cores over the CPU slots."
    )

    lease_seconds: Seconds = Field(default=60, description="A job whose lease is older than this is given to another worker.")
    renew_seconds: Seconds = Field(default=15, description="How often a running job's lease is renewed.")
    stop_seconds: Seconds = Field(
        default=10, description="How long a worker that is told to stop gives its trainers to write a checkpoint."
    )
    command_seconds: Seconds = Field(default=0.5, description="How often a running job's commands are read.")
    poll_seconds: Seconds = Field(default=1, description="How often an idle worker looks for work that no hint told of.")
    reap_seconds: Seconds = Field(default=10, description="How often dead leases are looked for.")
    commit_seconds: Seconds = Field(default=0.1, description="At most this long do events wait for their commit.")

    plan_seconds: Seconds = Field(default=60, description="Time limit of a plan.")
    plan_memory: Count = Field(default=8 << 30, description="Bytes that a plan may allocate.")
    plans_at_once: Count = Field(default=2, description="More wait their turn.")
    resident_bytes: int | None = Field(
        default=None,
        description=(
            "Decoded datasets up to this size are held in memory (on the GPU, where one is used). By default 4 GiB, "
            "on a GPU half of what is free there."
        ),
    )
    image_cache_bytes: int = Field(
        default=64 << 30,
        description="Decoded datasets kept on disk, below DATA_DIR/cache/images, may have as much; 0 keeps none.",
    )
    max_body: Count = Field(default=1 << 20, description="Bytes of a request body that is no upload.")
    upload_bytes: Count = Field(default=10 << 30, description="Bytes of an archive that is uploaded.")
    upload_unpacked_bytes: Count = Field(default=20 << 30, description="Bytes that its files may have once they are unpacked.")
    upload_files: Count = Field(default=1_000_000, description="Files that it may have.")
    upload_seconds: Seconds = Field(default=3600, description="Time limit of unpacking and checking it.")
    upload_memory: Count = Field(default=4 << 30, description="Bytes of memory that this may take.")
    upload_checks_at_once: Count = Field(default=2, description="More wait their turn.")
    stream_seconds: Seconds = Field(default=0.1, description="How often a followed job's log is read for new events.")
    cors_origins: Names = Field(
        default=[],
        description="Origins whose pages may use the api from a browser, separated by commas, as `https://lab.example.org`; "
        "`*` is every page that anybody opens who can reach it.",
    )
    heartbeat_seconds: Seconds = Field(default=15, description="How often an idle stream says that it lives.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 (there is no such file)
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 (its directory is known too late)
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """What is passed, then the environment, then the files of `GRAFT_SECRETS_DIR`."""
        if not (secrets := os.environ.get("GRAFT_SECRETS_DIR")):
            return init_settings, env_settings
        return init_settings, env_settings, SecretsSettingsSource(settings_cls, secrets_dir=secrets)

    @field_validator("plugins", "queues", "download_hosts", "cors_origins", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("gpus")
    @classmethod
    def _of_one_kind(cls, value: str) -> str:
        names = {part.strip() for part in value.split(",")}
        if "cpu" in names and len(names) > 1:
            raise ValueError("`cpu` stands for GPUs where there are none, and so not beside others; write cpu,cpu for two")
        return value

    @field_validator("cors_origins")
    @classmethod
    def _whole(cls, value: list[str]) -> list[str]:
        for origin in value:
            parts = urlsplit(origin)
            if origin != "*" and (parts.scheme not in {"http", "https"} or f"{parts.scheme}://{parts.netloc}" != origin):
                raise ValueError(f"'{origin}' is no origin; write scheme, host and port alone, as http://localhost:3000")
        return value

    @field_validator("data_dir", "inputs_dir", "plugins_dir")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return None if value is None else value.expanduser().absolute()

    @property
    def inputs(self) -> Path:
        """The inputs root."""
        return self.inputs_dir or self.data_dir / "inputs"

    @property
    def plugin_path(self) -> Path:
        """The plug-ins root."""
        return self.plugins_dir or self.data_dir / "plugins"

    @property
    def uploads(self) -> Path:
        """Where uploaded datasets lie: below the data directory, which workers share."""
        return self.data_dir / "uploads"

    @property
    def database(self) -> str:
        """The database URL, with its password, defaults applied."""
        return _with_password(self.database_url, self.database_password) or f"sqlite:///{self.data_dir / 'graft.db'}"

    @property
    def broker(self) -> str:
        """The broker URL, with its password, defaults applied."""
        return _with_password(self.broker_url, self.broker_password) or f"filesystem://{self.data_dir / 'hints'}"

    def places(self) -> dict[str, object]:
        """What a training process is told of this machine (`core.places.Places`, as JSON)."""
        return {
            "inputs": str(self.inputs),
            "cache": str(self.data_dir / "cache"),
            "uploads": str(self.uploads),
            "plugins": self.plugins,
            "plugins_dir": str(self.plugin_path),
            "download": self.download,
            "resident_bytes": self.resident_bytes,
            "image_cache_bytes": self.image_cache_bytes,
        }

    def policy(self) -> dict[str, Any]:
        """What may be downloaded (`fetching.policy.Policy`, as keywords)."""
        return {
            "download": self.download,
            "hosts": tuple(self.download_hosts),
            "private": self.download_private,
            "max_bytes": self.download_max_bytes,
            "min_rate": self.download_min_rate,
            "token": self.hf_token.get_secret_value() if self.hf_token else None,
        }


def _with_password(url: str, password: SecretStr | None) -> str:
    """`url` with the password in it, unless it names no server or has a password already."""
    parts = urlsplit(url)
    if password is None or parts.password is not None or parts.scheme in {"", "filesystem", "sqlite"}:
        return url
    user, _, host = parts.netloc.rpartition("@")
    rest = url.removeprefix(f"{parts.scheme}://").removeprefix(parts.netloc)
    return f"{parts.scheme}://{user}:{quote(password.get_secret_value(), safe='')}@{host}{rest}"
