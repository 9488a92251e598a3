"""Every setting of every command: declared once, with type, default, help
and what it is to a run.
"""

from model_utils.settings.options.common import CommonOptions, DeviceOptions, TrustOptions
from model_utils.settings.options.data import (
    FORMAT_FLAGS,
    GENERAL_FLAGS,
    NAMES_OF_FORMATS,
    BatchOptions,
    DataOptions,
    FilterOptions,
    LabelOptions,
    Role,
    SourceOptions,
)
from model_utils.settings.options.describing import (
    CheckOptions,
    MetadataFitOptions,
    MetadataInitOptions,
    MetadataOptions,
)
from model_utils.settings.options.evaluation import EvaluateOptions, PrintedLossOptions
from model_utils.settings.options.finetuning import FinetuneOptions
from model_utils.settings.options.generating import (
    GenerateOptions,
    GeneratorSources,
    GuardOptions,
    JudgeOptions,
    WantedCrystals,
)
from model_utils.settings.options.indexing import IndexOptions
from model_utils.settings.options.models import (
    BestOptions,
    ConvertOptions,
    DescribeOptions,
    DiffOptions,
    ExportOptions,
    ShowOptions,
    VerifyOptions,
)
from model_utils.settings.options.objective import JudgingOptions
from model_utils.settings.options.packing import PackOptions
from model_utils.settings.options.physics import PhysicsOptions
from model_utils.settings.options.piping import PipelineOptions
from model_utils.settings.options.reporting import PlotLossOptions, ReportOptions
from model_utils.settings.options.resuming import FIXED_IN_A_RUN, ResumeOptions
from model_utils.settings.options.running import (
    InlineModelOptions,
    ReproduceOptions,
    RunningOptions,
)
from model_utils.settings.options.simulating import (
    MdOptions,
    MinimizingOptions,
    RelaxOptions,
    SimulatedOptions,
)
from model_utils.settings.options.splits import SplitOptions
from model_utils.settings.options.submitting import SubmissionOptions, submitted
from model_utils.settings.options.training import (
    LossOptions,
    OptimizerOptions,
    OutputOptions,
    RunOptions,
    StageTwoOptions,
    TrainingOptions,
    TrainOptions,
    VerifyResumeOptions,
)
from model_utils.settings.options.watching import WatchOptions

__all__ = [
    "FIXED_IN_A_RUN",
    "FORMAT_FLAGS",
    "GENERAL_FLAGS",
    "NAMES_OF_FORMATS",
    "BatchOptions",
    "BestOptions",
    "CheckOptions",
    "CommonOptions",
    "ConvertOptions",
    "DataOptions",
    "DescribeOptions",
    "DeviceOptions",
    "DiffOptions",
    "EvaluateOptions",
    "ExportOptions",
    "FilterOptions",
    "FinetuneOptions",
    "GenerateOptions",
    "GeneratorSources",
    "GuardOptions",
    "IndexOptions",
    "InlineModelOptions",
    "JudgeOptions",
    "JudgingOptions",
    "LabelOptions",
    "LossOptions",
    "MdOptions",
    "MetadataFitOptions",
    "MetadataInitOptions",
    "MetadataOptions",
    "MinimizingOptions",
    "OptimizerOptions",
    "OutputOptions",
    "PackOptions",
    "PhysicsOptions",
    "PipelineOptions",
    "PlotLossOptions",
    "PrintedLossOptions",
    "RelaxOptions",
    "ReportOptions",
    "ReproduceOptions",
    "ResumeOptions",
    "Role",
    "RunOptions",
    "RunningOptions",
    "ShowOptions",
    "SimulatedOptions",
    "SourceOptions",
    "SplitOptions",
    "StageTwoOptions",
    "SubmissionOptions",
    "TrainOptions",
    "TrainingOptions",
    "TrustOptions",
    "VerifyOptions",
    "VerifyResumeOptions",
    "WantedCrystals",
    "WatchOptions",
    "submitted",
]
