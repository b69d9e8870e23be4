"""The configuration: what may be set, and where it comes from."""

from dane_core.settings.sections import SERVER_SECTIONS, Section, Settings, bracketed
from dane_core.settings.sources import Origins, load, usual_files
from dane_core.settings.values import masked

__all__ = [
    "SERVER_SECTIONS",
    "Origins",
    "Section",
    "Settings",
    "bracketed",
    "load",
    "masked",
    "usual_files",
]
