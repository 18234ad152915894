"""What surrounds a command: output that is held back while the frameworks load."""

import errno
import os
import sys

import pytest

from dlkit._shell import frameworks


def test_what_is_printed_while_the_frameworks_load_is_shown_only_if_they_fail(capfd):
    with frameworks():
        os.write(2, b"chatter")
    assert capfd.readouterr().err == ""

    def failing():
        with frameworks():
            os.write(2, b"a reason")
            raise ImportError

    with pytest.raises(ImportError):
        failing()
    assert capfd.readouterr().err == "a reason"


def test_a_closed_standard_error_is_no_reason_to_fail(monkeypatch):
    def closed(number):
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(sys, "stderr", None)
    monkeypatch.setattr(os, "dup", closed)
    with frameworks():
        pass
