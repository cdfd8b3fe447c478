"""How each run moved while it trained."""

from raygeo.analyses.analysis import Analysis
from raygeo.analyses.trajectories import report
from raygeo.analyses.trajectories.cost import cost
from raygeo.analyses.trajectories.workload import Trajectories, TrajectorySettings
from raygeo.report.parts import Parts

ANALYSIS = Analysis(
    name="trajectories",
    order=110,
    question="How did each run move while it trained?",
    settings=TrajectorySettings,
    workloads=(Trajectories,),
    arguments=lambda of: (of.runs, of.base, of.steps, of.reference),
    of_weights=True,
    report=Parts(
        figures=(report.trajectories,),
        sections=(report.laws,),
        caveats=(report.kept_steps,),
        histories=(report.histories,),
    ),
    cost=cost,
)
