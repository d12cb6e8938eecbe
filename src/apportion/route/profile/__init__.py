"""Questions under four pipelines -> a profile: measured, scored, written and read.

Offered: reading questions, measuring a profile, and the profile as a value and as a file.
"""

from apportion.route.profile.add_probes import add_probes
from apportion.route.profile.file import read_profile, write_profile
from apportion.route.profile.preflight import Preflight
from apportion.route.profile.profile import Outcome, Profile
from apportion.route.profile.questions import Question, read_questions
from apportion.route.profile.report import PipelineReport, ProfileReport
from apportion.route.profile.run import run_profile
from apportion.route.profile.scoring import Score, score

__all__ = [
    "Outcome",
    "PipelineReport",
    "Preflight",
    "Profile",
    "ProfileReport",
    "Question",
    "Score",
    "add_probes",
    "read_profile",
    "read_questions",
    "run_profile",
    "score",
    "write_profile",
]
