"""What a process says at its start of settings that do not fit."""

from __future__ import annotations

import os

import pytest

from store.startup import settings_or_exit


@pytest.fixture
def refused(monkeypatch, tmp_path, capsys):
    """`refused(NAME=value)`: what is said of these variables."""
    for name in [name for name in os.environ if name.startswith("GRAFT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GRAFT_DATA_DIR", str(tmp_path))

    def start(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(f"GRAFT_{name}", value)
        with pytest.raises(SystemExit) as end:
            settings_or_exit()
        assert end.value.code == os.EX_CONFIG
        return capsys.readouterr().err.splitlines()[1:]

    return start


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("CPU_SLOTS", "many", "GRAFT_CPU_SLOTS=many: write a whole number"),
        ("DOWNLOAD", "perhaps", "GRAFT_DOWNLOAD=perhaps: write true or false"),
        ("POLL_SECONDS", "0", "GRAFT_POLL_SECONDS=0: it must be greater than 0"),
        ("QUEUES", "", "GRAFT_QUEUES: name at least one"),
        ("GPUS", "0,cpu", "GRAFT_GPUS=0,cpu: `cpu` stands for GPUs where there are none"),
        ("INPUTS_DIR", "/nonexistent", "GRAFT_INPUTS_DIR=/nonexistent: there is no such folder; make it, or leave this out"),
        ("DATA_DIR", "/proc/nowhere", "GRAFT_DATA_DIR=/proc/nowhere: it cannot be used"),
        ("SECRETS_DIR", "/nonexistent", "GRAFT_SECRETS_DIR=/nonexistent: there is no such folder"),
        ("PLUGIN", "mine", "GRAFT_PLUGIN: there is no such setting; did you mean GRAFT_PLUGINS?"),
        ("PLUGINS", "mine", "GRAFT_PLUGINS: there is no module 'mine', neither in "),
        ("DATABASE_URL", "mysql://root:hidden@db/x", "GRAFT_DATABASE_URL: 'mysql' is no database that Graft runs on"),
        ("DATABASE_URL", "hidden", "GRAFT_DATABASE_URL: this is no URL; write sqlite:///PATH"),
        ("BROKER_URL", "rediss//hidden", "GRAFT_BROKER_URL: this names no broker; write redis://HOST:6379/0"),
        (
            "CORS_ORIGINS",
            "lab.example.org/",
            "GRAFT_CORS_ORIGINS=lab.example.org/: 'lab.example.org/' is no origin; write scheme",
        ),
        ("RENEW_SECONDS", "60", "GRAFT_RENEW_SECONDS=60: leases of 60 s (GRAFT_LEASE_SECONDS) end before"),
    ],
)
def test_what_does_not_fit_is_named_by_its_variable_with_the_way_out(refused, name, value, said):
    (line,) = refused(**{name: value})
    assert line.strip().startswith(said)
    assert "hidden" not in line


def test_every_fault_is_told_at_once(refused):
    assert len(refused(INPUTS_DIR="/nonexistent", GPU="0", PLUGINS="mine,json")) == 3


def test_plug_ins_are_found_and_not_run(monkeypatch, tmp_path):
    package = tmp_path / "plugins" / "mine"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('it was run')")
    (package / "nets.py").write_text("")
    monkeypatch.setenv("GRAFT_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("GRAFT_PLUGINS", "mine,mine.nets,json")
    assert settings_or_exit().plugins == ["mine", "mine.nets", "json"]


def test_variables_of_the_deployment_are_no_mistyped_settings(monkeypatch, tmp_path):
    monkeypatch.setenv("GRAFT_DATA_DIR", str(tmp_path))
    names = ["HOST", "PORT", "URL", "DATA_FOLDER", "INPUTS_FOLDER", "PLUGINS_FOLDER", "HF_TOKEN_FILE", "REDIS_IMAGE"]
    for name in names:
        monkeypatch.setenv(f"GRAFT_{name}", "x")
    settings_or_exit()
