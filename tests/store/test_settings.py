"""Settings, and the secrets among them."""

from __future__ import annotations

import pytest

from store.settings import Settings


@pytest.fixture
def secrets(tmp_path, monkeypatch):
    """A directory of secrets, as Docker mounts them."""
    (tmp_path / "graft_database_password").write_text("p/a@s s\n")
    (tmp_path / "graft_cpu_slots").write_text("3")
    monkeypatch.setenv("GRAFT_SECRETS_DIR", str(tmp_path))
    return tmp_path


def test_a_file_sets_what_the_environment_does_not(secrets, monkeypatch):
    assert Settings().cpu_slots == 3
    monkeypatch.setenv("GRAFT_CPU_SLOTS", "2")
    assert Settings().cpu_slots == 2
    assert Settings(cpu_slots=1).cpu_slots == 1


@pytest.mark.parametrize(
    ("url", "whole"),
    [
        ("postgresql://graft@db:5432/graft", "postgresql://graft:p%2Fa%40s%20s@db:5432/graft"),
        ("postgresql://graft@/graft?host=/run/pg", "postgresql://graft:p%2Fa%40s%20s@/graft?host=/run/pg"),
        ("postgresql://postgresql/graft", "postgresql://:p%2Fa%40s%20s@postgresql/graft"),
        ("postgresql://graft:its-own@db/graft", "postgresql://graft:its-own@db/graft"),
        ("sqlite:////data/graft.db", "sqlite:////data/graft.db"),
    ],
)
def test_the_password_of_a_file_is_put_into_the_url(secrets, url, whole):
    settings = Settings(database_url=url)
    assert settings.database == whole
    assert "p/a@s" not in repr(settings)


def test_a_password_without_a_server_changes_nothing(secrets, tmp_path):
    (secrets / "graft_broker_password").write_text("b")
    settings = Settings(data_dir=tmp_path)
    assert (settings.database, settings.broker) == (f"sqlite:///{tmp_path}/graft.db", f"filesystem://{tmp_path}/hints")


def test_the_brokers_password_is_its_own(secrets):
    (secrets / "graft_broker_password").write_text("b:c")
    assert Settings(broker_url="redis://redis:6379/0").broker == "redis://:b%3Ac@redis:6379/0"


def test_the_token_of_the_hub_is_a_file_and_goes_to_what_fetches_alone(secrets, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "of somebody's shell")
    assert Settings().policy()["token"] is None
    (secrets / "graft_hf_token").write_text("")
    assert not Settings().policy()["token"]
    (secrets / "graft_hf_token").write_text("hf_secret\n")
    settings = Settings()
    assert settings.policy()["token"] == "hf_secret"  # noqa: S105
    assert "hf_secret" not in repr(settings)
    assert "hf_secret" not in str(settings.places()), "what a training process is told"


def test_the_cpu_stands_for_gpus_only_where_there_are_none():
    assert Settings(gpus="cpu,cpu").gpus == "cpu,cpu"
    with pytest.raises(ValueError, match="not beside others; write cpu,cpu"):
        Settings(gpus="0,cpu")
