"""The YAML of a run: every field, its meaning and its default, as pydantic models.

Sections are plain data: nothing here imports torch, so `anit data` and `anit --help` start at once. configfile.py reads
a file into them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from anit_ds.adversarial.rules import METHODS, raw_unless_told
from anit_ds.errors import called_here, shown
from anit_ds.files import expanded_path
from anit_ds.yamlfile import dump_yaml

NoiseKind = Literal["none", "truncation", "shuffle", "insertion", "replacement", "padding", "opposite"]

PathText = Annotated[str, AfterValidator(expanded_path)]
"""A path or a hub id: `~` and `${NAME}` are put in when it is read, so that a run's folder holds what was meant."""


def _without_secret(url: str) -> str:
    if "@" in url.split("://", 1)[-1].split("/", 1)[0]:
        raise ValueError("a name or password in it would stand in the run's folder; the key comes from OPENAI_API_KEY")
    return url


_Url = Annotated[str, AfterValidator(_without_secret)]
_MANY = 1_000_000
"""Above every size that means something, and small enough to compute with."""
_Beta = Annotated[float, Field(ge=0, lt=1)]
TrackerName = Literal[
    "tensorboard", "wandb", "mlflow", "trackio", "swanlab", "comet_ml", "aim", "clearml", "dvclive"
]  # fmt: skip
"""Those that accelerate knows."""


def _as_list(given: Any) -> Any:
    return [given] if isinstance(given, str) else given


class Section(BaseModel):
    """A part of the YAML: unknown keys are refused, and the docstring under a field is its documentation."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, populate_by_name=True, allow_inf_nan=False)


class ModelConfig(Section):
    name_or_path: PathText
    """A Hugging Face hub id or a local folder with a causal LM and its tokenizer."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Dtype of weights and activations. `auto`: bfloat16 where the device computes it natively, else float32."""
    load_in_4bit: bool = False
    """QLoRA: the frozen linear layers in 4 bits, computed in `dtype` (bitsandbytes; pip install 'anit-ds[quant]')."""
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    """With load_in_4bit: the 16 values that a weight can have."""
    bnb_4bit_use_double_quant: bool = True
    """With load_in_4bit: the scales of 64 weights each are quantised as well."""
    attn: str = "sdpa"
    """Attention implementation given to transformers: sdpa, eager, flash_attention_2."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    trust_remote_code: bool = False
    """Run modelling code that comes with the checkpoint."""


class Columns(Section):
    """Which columns of a table of your own hold what."""

    model_config = ConfigDict(frozen=True)

    text: str | tuple[str, ...] = "text"
    """The text, or several columns that make it up, such as [title, body]."""
    label: str | tuple[str, ...] | None = None
    """Classification: the label, in words or as a number. Multilabel: a list of labels, a cell with it as JSON or with
    a `separator`; or several columns of 0 and 1, such as [toxic, insult], each named like its label. Without this,
    `entities` and `items`, the columns `label` or `items`."""
    separator: str | None = Field(None, min_length=1)
    """Multilabel: what stands between the labels in a cell of text, such as ";"."""
    entities: str | None = None
    """Entities by their places: a list of {start, end, label} or [start, end, label], or a cell with it as JSON."""
    items: str | None = None
    """The answer of any task: a list of [label, span, ...], or a cell with it as JSON."""
    id: str | None = None
    """A name for each example, unique in its split; by default they are counted."""

    @model_validator(mode="after")
    def _labels_have_columns(self) -> Columns:
        if self.label == ():
            raise ValueError("label: names no column")
        if self.separator is not None and not isinstance(self.label, str):
            raise ValueError("separator: is for labels in one column, which `label` names")
        if self.entities is not None and not isinstance(self.text, str):
            raise ValueError("entities: their places are in the text of one column, so `text` must name one")
        return self


class MixItem(Section):
    dataset: str
    """Name of a data set (see data.dataset)."""
    path: PathText | None = None
    """Folder, file or hub id of this data set."""
    weight: float = Field(1.0, gt=0, le=1000)
    """Share of this set's training samples drawn into an epoch: 0.5 takes half of them, 2 takes each twice."""
    instructions: Literal["concise", "detailed"] | None = None
    """Version of the instructions; by default data.instructions."""
    instructions_file: PathText | None = None
    """A YAML of your own with this data set's instructions; by default data.instructions_file."""
    columns: Columns | None = None
    """Which columns of a table of your own hold what."""


class DataConfig(Section):
    dataset: str | None = None
    """Name of a data set: 14lap, 14res, 15res, 16res, agnews, conll2003, nyt24, ontonotes5, scierc, sst2, webnlg,
    wnut17, movie-reviews, or any other name for data of your own (then give `instructions_file` too)."""
    path: PathText | None = None
    """Folder with the usual file names, one file (a split is then carved from it), or a hub id."""
    columns: Columns | None = None
    """Data of your own: which columns hold what, such as {text: body, label: stars}."""
    mix: list[MixItem] = Field(default_factory=list)
    """Several data sets in one run, each with its own instructions, noise and beta; in place of dataset and path."""
    instructions: Literal["concise", "detailed"] = "detailed"
    """Which version of the instructions: only the goal, or step-by-step guidance."""
    instructions_file: PathText | None = None
    """A YAML of your own with instructions, question, format and labels, in place of the shipped one."""
    paraphrases: int | None = Field(None, ge=1)
    """How many paraphrases of the instruction training draws from (all by default); 1 is the paper's setting."""
    fraction: float = Field(1.0, gt=0, le=1)
    """Share of the training split that is used: a seeded subset, stratified for classification."""
    on_error: Literal["raise", "skip"] = "raise"
    """A broken line ends the run (`raise`), or is left out and counted (`skip`)."""
    max_length: int = Field(512, ge=16, le=1 << 24)
    """Longest prompt plus answer in tokens; a longer sample's text is cut, never its instruction or answer. A training
    sample whose answer leaves no room for its prompt is left out."""
    max_train: int | None = Field(None, ge=1)
    """Use at most this many training examples (a seeded choice)."""
    max_dev: int | None = Field(None, ge=1)
    """Use at most this many dev examples."""
    max_test: int | None = Field(None, ge=1)
    """Use at most this many test examples."""

    @model_validator(mode="after")
    def _one_source(self) -> DataConfig:
        if bool(self.dataset) == bool(self.mix):
            raise ValueError("give either dataset (with path) or mix, not both or neither")
        return self


class NoiseConfig(Section):
    kind: NoiseKind = "replacement"
    """Which noise bends the instructions; `none` leaves every instruction raw, and is what the method sft always has,
    and anit with the preset ours where this line is left out."""
    omega: float = Field(0.2, ge=0, le=1)
    """Noise level: the share of an instruction's words that the noise touches."""
    phi: float = Field(0.8, ge=0, le=1)
    """Share of the training samples whose instruction becomes noisy."""
    resample: Literal["once", "epoch"] = "once"
    """Draw the noise once, or anew each epoch (beta is then computed anew, too)."""
    views: int = Field(1, ge=1, le=64)
    """Noisy instructions of each training sample, drawn apart; a step has them side by side, so a micro-batch holds so
    many times its samples (with schedule: prefix_tree they share the text before the instruction)."""
    train_on: Literal["all", "worst"] = "all"
    """Of a sample's views, train on all, or (ours) on the one whose answer the model finds least likely at that step,
    which costs a forward pass over all of them."""
    opposites: Literal["table", "chat"] = "table"
    """Where opposite instructions come from: the table beside the instructions, or a chat model (cached)."""
    chat_model: str = "gpt-4o"
    """The chat model that writes opposites."""
    base_url: _Url | None = None
    """Any OpenAI-compatible endpoint for the chat model; the key comes from OPENAI_API_KEY only."""

    @property
    def rows(self) -> int:
        """Rows that a sample has in a training batch."""
        return self.views if self.train_on == "all" else 1


class DistortionConfig(Section):
    kind: Literal["rbe", "lme"] = "rbe"
    """How the semantic distortion beta is measured: word edit distance (rbe) or sentence embeddings (lme)."""
    normalise: Literal["auto", "minmax", "length"] = "auto"
    """Rule-based only: (d - min) / (max - min), or d / max(len). `auto`: minmax in the preset `paper`, else length
    where instructions have several lengths."""
    model: PathText = "text-embedding-3-large"
    """LM-based only: an embedding model behind the OpenAI API, or with `local: true` a folder or hub id."""
    local: bool = False
    """Embed with a local transformers model (mean-pooled) in place of the API."""
    base_url: _Url | None = None
    """Any OpenAI-compatible endpoint; the key comes from OPENAI_API_KEY only and is never logged or saved."""
    batch_size: int = Field(256, ge=1, le=_MANY)
    """Texts per request."""
    max_batch_tokens: int = Field(100_000, ge=1, le=1 << 40)
    """Tokens per request (estimated), whichever of the two limits comes first."""
    cache: PathText | None = None
    """The embeddings' cache file; by default in the user's cache folder."""
    timeout: float = Field(60.0, gt=0, le=_MANY)
    """Seconds before a request is given up and tried again."""
    max_retries: int = Field(8, ge=0, le=1000)
    """Tries after the first for 429, 5xx, time-outs and dropped connections, with exponential back-off."""


class PromptConfig(Section):
    style: Literal["plain", "chat"] = "plain"
    """One field a line as in the paper, or the same fields inside the tokenizer's chat template."""
    order: Literal["paper", "instruction_last"] = "paper"
    """Instruction first (the paper), or just before Answer (ours)."""


class MethodConfig(Section):
    name: str = Field(
        "anit",
        description=f"One of {', '.join(METHODS)}.\n`sft` is raw instructions by definition: it switches noise.kind "
        "to none; `noisy_sft` is the same on noisy ones.",
    )
    preset: Literal["paper", "authors", "ours"] = "ours"
    """anit's settings where this section is silent: the paper's text, what its authors ran, or ours, which trains on
    raw instructions where noise.kind is not given."""
    eps: float = Field(1.0, ge=0)
    """Radius of the ball and bound of the uniform start, in units of `eps_unit`."""
    eps_unit: Literal["absolute", "relative", "element"] = "absolute"
    """`absolute`: eps and alpha in the units of the embeddings (the paper); `relative`: times the mean norm of a row of
    the embedding table, so that one setting means the same on models of different scale (ours); `element`: times the
    root mean square of an element of the table (ours), for what bounds or moves elements: fgsm, ball: linf, step: sign.
    It is about 1 / sqrt(D) of `relative`."""
    alpha: float = Field(1e-3, ge=0)
    """Length of a gradient step, in units of `eps_unit`; with step: sign, of each element's step."""
    step: Literal["frobenius", "sign"] = "frobenius"
    """anit: a step of length alpha along g / ||g||_F (the paper), or of alpha in each element along sign(g) (ours)."""
    start: float = Field(1.0, ge=0, le=1)
    """Size of the random start as a share of the paper's, (10 / sqrt(N)) * U(-eps, eps) * (1 - beta); 0: none."""
    lambda_: float = Field(1.0, ge=0, alias="lambda")
    """Weight of the adversarial loss."""
    loss: Literal["ce", "consistency"] = "ce"
    """anit, random: the adversarial loss is the answer's loss at the perturbed embeddings (the paper), or how far the
    clean and the perturbed distributions are apart at the answer's tokens, (KL(p||q) + KL(q||p)) / 2 (as in SMART)."""
    warmup: float = Field(0.0, ge=0, lt=1)
    """Share of the optimizer steps that train on the clean loss alone, one pass each, before the method begins."""
    ball: Literal["frobenius", "linf", "none"] = "frobenius"
    """What a perturbation is projected on: a sample's Frobenius norm <= eps, each element <= eps, or nothing."""
    tokens: Literal["prompt", "all", "instruction", "text"] = "prompt"
    """Which tokens may be perturbed: {I, C} (the paper), answers too (the authors' code), the instruction only, or the
    sample's text only (ours)."""
    attack_none: bool = True
    """Whether a sample in which nothing is to be found, its answer is None, is attacked like the others (the paper), or
    counts as often and stays unperturbed (ours)."""
    beta_scope: Literal["dataset", "sample"] = "dataset"
    """One beta for the data set (the paper), or each sample's own distortion, 0 for a raw one (ours)."""
    beta: float | None = Field(None, ge=0, le=1)
    """Use this number in place of the measured distortion."""
    gradient: Literal["attack", "clean"] = "attack"
    """Where the attack's gradient is taken: at delta0 (a pass of its own), or at delta = 0 from the clean pass (two
    passes, not three)."""
    updates: Literal["joint", "alternating"] = "joint"
    """anit: an optimizer step on the sum of the two losses (the paper), or, with gradient: clean, one on the clean loss
    and then one on the adversarial loss of the same minibatch (ours): as many passes, twice the steps in an epoch."""
    passes: Literal["joined", "separate"] = "joined"
    """gradient: attack, clean and adversarial rows in one forward (faster), or one after the other (half the
    activations)."""
    schedule: Literal["three_pass", "pipelined", "prefix_tree", "auto"] = "auto"
    """How a step is laid out; no choice changes its result. `auto`: the one of the others that computes the fewest
    tokens and, at ZeRO 3, fetches the fewest weights; the log says which and why. `three_pass`: attack and training of
    a micro-batch one after the other, on whole prompts. `prefix_tree`, for every method: tokens that samples of a
    micro-batch have in common (question, format and options where prompt.order is instruction_last, the whole
    instruction where it stands first and is raw) run once, without padding; where method.tokens is text, or instruction
    that stands last, all that stands before it runs once for all passes; LoRA dropout, if any, shares its masks.
    `pipelined`, for anit: the attack on micro-batch i + 1 in the training pass of micro-batch i, so that G
    micro-batches a step sweep G + 1 times over the parameters in place of 2G; it pays at ZeRO 3, where a sweep is what
    crosses the network, and needs room for half as many rows again in a pass."""
    steps: int = Field(3, ge=1, le=_MANY)
    """pgd, freelb: K, the number of ascent steps; freeat: m, the number of optimizer steps on one minibatch."""
    init_norm: float = Field(0.0, ge=0)
    """freelb: size of the random start (its init_mag)."""
    neftune_alpha: float = Field(5.0, ge=0)
    """neftune: a in U(-1, 1) * a / sqrt(T * D)."""

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """What every field but the name is without a preset, by the YAML's keys."""
        fields = cls.model_fields.items()
        return {field.alias or name: field.default for name, field in fields if name not in ("name", "preset")}

    @property
    def can_be_pipelined(self) -> bool:
        """Whether `schedule: pipelined` gives the method's result."""
        return (self.name, self.gradient, self.passes, self.loss) == ("anit", "attack", "joined", "ce")

    @property
    def replays(self) -> int:
        """Optimizer steps made on one minibatch before the next: m for `freeat`, 2 for alternating updates, else 1."""
        if self.name == "freeat":
            return self.steps
        return 2 if self.alternates else 1

    @property
    def epochs_divided_by(self) -> int:
        """`freeat` trains on each minibatch m times in a row, but in 1 / m of the epochs, as its paper does."""
        return self.steps if self.name == "freeat" else 1

    @property
    def alternates(self) -> bool:
        return self.name == "anit" and self.updates == "alternating"

    @model_validator(mode="before")
    @classmethod
    def _known_method_and_keys(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        name = raw.get("name", "anit")
        rules = METHODS.get(name) if isinstance(name, str) else None
        if rules is None:
            raise ValueError(f"no method is called {shown(name)}; there are {', '.join(METHODS)}")
        # A resolved configuration lists every field; only one that was CHANGED and is not read is a mistake.
        for key, value in raw.items():
            field = "lambda_" if key == "lambda" else key
            known = cls.model_fields.get(field)
            if field != "name" and known and field not in rules.reads and value != known.default:
                reads = ", ".join(sorted(k.rstrip("_") for k in rules.reads))
                raise ValueError(f"{name} does not use {key!r}; it reads {reads}")
        preset = raw.get("preset", "ours")
        fills = rules.presets.get(preset, {}) if isinstance(preset, str) else {}
        filled = {**fills, **raw}
        # The preset's alpha is a whole text's length in its unit: as a step of each element it would drown the text.
        for key, own, said in (("step", "frobenius", ("alpha", "eps_unit")), ("eps_unit", "relative", ("alpha",))):
            if preset == "ours" and fills and raw.get(key, own) != own and not set(said) <= raw.keys():
                raise ValueError(
                    f"{key}: {shown(raw[key])} changes what the preset's alpha means, so give {' and '.join(said)} "
                    "too; signs were measured with step: sign, alpha: 0.01, eps_unit: element"
                )
        if "updates" not in raw and filled.get("gradient") != "clean":
            filled.pop("updates", None)  # a preset's alternating updates go with its gradient
        return filled

    @model_validator(mode="after")
    def _pipelined_is_joined(self) -> MethodConfig:
        if self.schedule == "pipelined" and self.name != "anit":
            raise ValueError(f"schedule: pipelined is for the method anit, not {self.name}; use schedule: three_pass")
        if self.schedule == "pipelined" and not self.can_be_pipelined:
            raise ValueError(
                "schedule: pipelined is the attack of gradient: attack in the pass of passes: joined with loss: ce, "
                f"not gradient: {self.gradient} with passes: {self.passes} and loss: {self.loss}; "
                "use schedule: three_pass"
            )
        return self

    @model_validator(mode="after")
    def _alternating_takes_the_clean_gradient(self) -> MethodConfig:
        if self.alternates and self.gradient != "clean":
            raise ValueError(
                "updates: alternating steps on the clean loss first and takes the attack's gradient from there: use "
                f"gradient: clean, not {self.gradient}"
            )
        return self

    @model_validator(mode="after")
    def _consistency_is_joined(self) -> MethodConfig:
        if self.loss == "consistency" and (self.gradient, self.passes) != ("attack", "joined"):
            raise ValueError(
                "loss: consistency compares clean and perturbed rows of one pass: use passes: joined and gradient: "
                "attack, which with start: 0 takes the clean gradient too"
            )
        return self


class LoraConfig(BaseModel):
    """`lora`: our names for the common fields; every other field of peft.LoraConfig is passed on and checked there."""

    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True, allow_inf_nan=False)

    r: int = Field(16, ge=1, le=1 << 16)
    """Rank."""
    alpha: float = Field(16, gt=0)
    """Scale: the update is alpha / r * B A."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the adapter's input; off in the attack pass. Above 0, `method.schedule: auto` takes no prefix tree."""
    targets: str | list[str] = "all-linear"
    """Module names, or `all-linear`: every linear layer but the head."""
    init_from: PathText | None = None
    """A run folder or adapter folder whose adapter this run starts from."""

    @model_validator(mode="after")
    def _named_as_here(self) -> LoraConfig:
        for name in self.model_extra or {}:
            if other := called_here(name):
                raise ValueError(f"{name}: it is called {other} here")
        return self


class TrainConfig(Section):
    epochs: float = Field(3.0, gt=0, le=_MANY)
    """Passes over the training samples."""
    max_steps: int | None = Field(None, ge=1, le=1 << 40)
    """Optimizer steps of the run, in place of `epochs`, fewer or more; the schedule ends there."""
    global_batch: int = Field(32, ge=1, le=_MANY)
    """Samples an optimizer step over all ranks, which share them as evenly as they go."""
    micro_batch: int = Field(4, ge=1, le=_MANY)
    """Samples a forward pass on one rank, at most (with passes: joined and gradient: attack, twice as many rows)."""
    lr: float = Field(1e-4, gt=0)
    """Peak learning rate."""
    lr_schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """What the learning rate does after the warm-up."""
    warmup: float = Field(0.04, ge=0, lt=1)
    """Share of the steps over which the learning rate rises from 0."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """PyTorch's AdamW, or plain SGD (for comparisons)."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled weight decay."""
    adam_betas: tuple[_Beta, _Beta] = (0.9, 0.999)
    """AdamW's averaging coefficients."""
    adam_eps: float = Field(1e-8, gt=0)
    """AdamW's epsilon."""
    grad_clip: float = Field(1.0, ge=0)
    """Largest norm of the gradient; 0 means no clipping."""
    seed: int = Field(42, ge=0, lt=2**63)
    """Every random choice of the run follows from it."""
    group_by_length: bool = True
    """Batch samples of similar length together."""
    padding_free: bool = False
    """Lay the samples of a micro-batch end to end in one row, with attention inside each, instead of padding them
    to one length: the same result. It pays where lengths differ within a micro-batch (it saves the share of padding);
    on batches of one length it gains nothing. On a GPU use it with model.attn: flash_attention_2; without, it starts
    an attention kernel a sample."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass (non-reentrant) to save memory."""
    checkpoint_attack: bool = True
    """With activation_checkpointing: recompute in an attack's own pass too. `false` keeps that pass's activations,
    which a pass without parameter gradients and with half of the joined rows may have the memory for, and saves its
    second forward."""
    early_stopping_patience: int | None = Field(None, ge=1)
    """Stop once so many evaluations on dev in a row (see eval.every) found no better score; null: train to the end."""
    checkpoint_every: int = Field(200, ge=0)
    """Optimizer steps between checkpoints; 0 keeps only the last."""
    keep: int = Field(2, ge=1)
    """Newest checkpoints kept."""
    log_every: int = Field(10, ge=1)
    """Optimizer steps between fetches of the statistics from the device (every step is logged all the same)."""
    report_to: Annotated[list[TrackerName], BeforeValidator(_as_list)] = Field(["tensorboard"])
    """Trackers that get every step's statistics, one name or several, such as [tensorboard, wandb]; metrics.jsonl has
    them without any. Each needs its package, and is set up by its own environment variables."""
    rank_timeout: float = Field(600.0, gt=0, le=_MANY)
    """Seconds without a sign of life or progress after which a rank counts as hung and the run is ended with its
    name; it must exceed the slowest step or evaluation batch, and what a checkpoint waits for its disk."""


class EvalConfig(Section):
    before: bool = False
    """Score the untouched model on the test split first."""
    every: float | None = Field(1.0, gt=0, le=_MANY)
    """Epochs between evaluations on dev (the best adapter is kept), up to the end of a minibatch's steps; null: only at
    the end."""
    test: bool = True
    """Score the best adapter on the test split at the end."""
    batch_size: int = Field(16, ge=1, le=_MANY)
    """Prompts decoded at once on one rank."""
    whole_weights: bool | None = None
    """At ZeRO 3: true gathers the weights once an evaluation, false with every pass; null: once where they fit."""
    max_new_tokens: int | None = Field(None, ge=1, le=_MANY)
    """Longest answer in tokens; by default training's longest and a quarter more, at least 8."""
    noises: Annotated[list[NoiseKind], BeforeValidator(_as_list)] = Field(default_factory=list)
    """Score the best adapter on the test split under these noises as well: robustness and consistency."""
    omega: float | None = Field(None, gt=0, le=1)
    """Level of the noises at evaluation; by default noise.omega, that of training."""


class Config(Section):
    """One run. See each section for its fields."""

    model: ModelConfig
    data: DataConfig
    noise: NoiseConfig = Field(default_factory=NoiseConfig)
    distortion: DistortionConfig = Field(default_factory=DistortionConfig)
    prompt: PromptConfig = Field(default_factory=PromptConfig)
    method: MethodConfig = Field(default_factory=MethodConfig)
    lora: LoraConfig | None = Field(default_factory=LoraConfig)
    """An adapter of low rank; `lora: null` trains every weight of the model (then train.lr is nearer to 1e-5)."""
    train: TrainConfig = Field(default_factory=TrainConfig)
    eval: EvalConfig = Field(default_factory=EvalConfig)
    deepspeed: PathText | dict[str, Any] = Field(default_factory=lambda: {"zero_optimization": {"stage": 1}})
    """A DeepSpeed JSON file, or its content in place; ZeRO 1 by default."""
    out: PathText
    """The run's folder."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Filled in by ANIT when it writes the resolved configuration; ignored when read."""

    @model_validator(mode="before")
    @classmethod
    def _resolved_before_a_field_was_there(cls, raw: Any) -> Any:
        """What a run folder's configuration does not name came later, and had its default's effect, not a preset's."""
        if isinstance(raw, dict) and raw.get("versions") and isinstance(raw.get("method"), dict):
            return {**raw, "method": {**MethodConfig.defaults(), **raw["method"]}}
        return raw

    @model_validator(mode="after")
    def _decided_by_the_method(self) -> Config:
        if self.method.name == "anit" and self.method.preset == "paper" and self.distortion.normalise == "auto":
            self.distortion.normalise = "minmax"
        if self.method.name == "sft":
            self.noise.kind, self.noise.views = "none", 1
        elif raw_unless_told(self.method.name, self.method.preset) and "kind" not in self.noise.model_fields_set:
            self._noise_is_not_half_asked_for()
            self.noise.kind = "none"
        return self

    @model_validator(mode="after")
    def _sections_do_not_contradict_each_other(self) -> Config:
        if self.noise.kind == "none" and self.noise.views > 1:
            raise ValueError(f"noise.views: {self.noise.views} views of a sample need a noise; noise.kind is none")
        if set(self.eval.noises) - {"none", "opposite"} and not self.omega_at_evaluation:
            raise ValueError("eval.noises: at noise.omega 0 they change no instruction; give eval.omega a level")
        if self.method.replays > 1 and self.noise.rows < self.noise.views:
            raise ValueError(
                f"noise.train_on: worst picks a view anew at each of {self.method.name}'s replays of a minibatch, "
                "whose delta belongs to the one before; use train_on: all"
            )
        if self.lora is None and self.model.load_in_4bit:
            raise ValueError(
                "lora: null trains every weight, and weights in 4 bits cannot be trained; use LoRA on them"
            )
        if self.lora is None and self.method.schedule == "pipelined":
            raise ValueError(
                "method.schedule: pipelined keeps the attack's rows off LoRA's weights; with lora: null, where every "
                "weight is trained, use three_pass or prefix_tree"
            )
        if self.train.early_stopping_patience and self.eval.every is None:
            raise ValueError(
                "train.early_stopping_patience counts evaluations on dev, and eval.every: null makes none before the "
                "end; give eval.every in epochs, such as 1.0"
            )
        return self

    def _noise_is_not_half_asked_for(self) -> None:
        for field in sorted(self.noise.model_fields_set):
            if getattr(self.noise, field) != NoiseConfig.model_fields[field].default:
                raise ValueError(
                    f"noise.{field}: changes nothing, because anit with the preset ours trains on raw instructions "
                    "where noise.kind is not given; give it, such as noise.kind: replacement"
                )

    @property
    def filled_in(self) -> frozenset[str]:
        """The fields (section.key) that a preset of the method fills in where the YAML is silent."""
        presets = METHODS[self.method.name].presets
        keys = {f"method.{key}" for fills in presets.values() for key in fills}
        raw = any(raw_unless_told(self.method.name, preset) for preset in presets)
        return frozenset(keys | {"noise.kind"} if raw else keys)

    @property
    def omega_at_evaluation(self) -> float:
        """Level of the noises that an evaluation bends its instructions with."""
        return self.eval.omega or self.noise.omega

    @property
    def lora_dropout(self) -> float:
        return self.lora.dropout if self.lora else 0.0

    @property
    def packs(self) -> bool:
        """Whether the samples of a micro-batch lie end to end in one row."""
        return self.train.padding_free or self.method.schedule == "prefix_tree"

    @property
    def attacks_behind_context(self) -> bool:
        """Whether every perturbed token stands behind a context that no perturbation reaches."""
        tokens = self.method.tokens
        return tokens == "text" or (tokens == "instruction" and self.prompt.order == "instruction_last")

    def to_yaml(self) -> str:
        """The resolved configuration as YAML that `load_config` reads back to an equal object."""
        return dump_yaml(self.model_dump(mode="json", by_alias=True))
