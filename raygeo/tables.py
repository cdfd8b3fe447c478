"""The Arrow schema of every table in a store. Angles are in degrees, losses in nats, time in seconds."""

import pyarrow as pa

_F, _I, _S, _B = pa.float64(), pa.int64(), pa.string(), pa.bool_()


def _table(**columns: pa.DataType) -> pa.Schema:
    return pa.schema(list(columns.items()))


BASE = "base"
"""The name of the untrained student in every table."""
LORA = "lora (gauge-dependent)"
"""The name in tables of the space of LoRA factors, which depends on how a delta is factored."""

SCHEMAS: dict[str, pa.Schema] = {
    # What is learned from. `split` is "train" or "heldout", whole prompts; `correct` is the verdict on `reward`;
    # `logprobs` are those of the model that wrote the completion, one a token (end-of-text included), null if unknown.
    "rollouts": _table(
        prompt_id=_S,
        prompt=_S,
        gold=_S,
        sample=_I,
        completion=_S,
        reward=_F,
        correct=_B,
        truncated=_B,
        source=_S,
        split=_S,
        logprobs=pa.list_(pa.float32()),
    ),
    # Rows set aside: where they came from and why.
    "rejected": _table(source=_S, line=_I, reason=_S, text=_S),
    # Every count a reader should know: rows read, rejected, truncated, mixed prompts, pairs made, ...
    "counts": _table(stage=_S, name=_S, value=_I),
    # Log-probabilities of the base, one list per rollout row, one entry per completion token (end-of-text included).
    "reference": _table(row=_I, logprobs=pa.list_(pa.float32())),
    # Files of final hidden states of the base: the first rollout row and completion token in each, and how many.
    "reference_states": _table(row=_I, rows=_I, token=_I, tokens=_I),
    "runs": _table(
        run=_S,
        loss=_S,
        lr=_F,
        seed=_I,
        init_seed=_I,
        status=_S,
        reason=_S,
        steps=_I,
        examples=_I,
        tokens=_I,
        seconds=_F,
        delta=_S,
        delta_norm=_F,
        relative_norm=_F,
        params=_S,
        student=_S,
        mlflow_run_id=_S,
        key=_S,
    ),
    # The runs of a sweep: `entry` of the study's `runs`, what was chosen (JSON, without seeds), what was measured.
    # `rank` is that of the configuration's means over seeds: 1 if none dominates it, 2 if only those of rank 1 do, ...
    "trials": _table(
        run=_S,
        entry=_I,
        values=_S,
        seed=_I,
        init_seed=_I,
        status=_S,
        accuracy=_F,
        heldout_nll=_F,
        sharpness=_F,
        rank=_I,
    ),
    # Training curves: `objective` in the loss's own unit, `nll` the plain token mean, so that losses can be compared.
    "curves": _table(run=_S, step=_I, metric=_S, value=_F),
    "answers": _table(
        run=_S, benchmark=_S, problem_id=_S, completion=_S, extracted=_S, correct=_B, truncated=_B, tokens=_I
    ),
    "accuracy": _table(
        run=_S, benchmark=_S, n=_I, correct=_I, accuracy=_F, low=_F, high=_F, truncated=_I, no_answer=_I
    ),
    "mcnemar": _table(benchmark=_S, run_a=_S, run_b=_S, n=_I, only_a=_I, only_b=_I, p_exact=_F, p_holm=_F),
    # `participation_rank` is (sum s^2)^2 / sum s^4; ranks are null where the delta is not a matrix.
    "deltas": _table(
        run=_S,
        module=_S,
        layer=_I,
        scope=_S,
        norm=_F,
        base_norm=_F,
        relative_norm=_F,
        spectral_norm=_F,
        stable_rank=_F,
        effective_rank=_F,
        participation_rank=_F,
    ),
    # One row a kept step, the last one included. `distance` is from the kept step before (from the base at the first),
    # `path_length` their sum, a lower bound of the way travelled, `straightness` norm over path length;
    # `cosine_previous` is between this move and the one before, `cosine_reference` to that run at the same step.
    "trajectories": _table(
        run=_S,
        step=_I,
        norm=_F,
        relative_norm=_F,
        cosine_final=_F,
        cosine_reference=_F,
        distance=_F,
        path_length=_F,
        straightness=_F,
        cosine_previous=_F,
    ),
    # Least squares of the norm on the step t: law "log" is a + b log t, "power" a t^b; null with fewer than 4 points.
    "trajectory_fits": _table(run=_S, law=_S, n=_I, a=_F, b=_F, rss=_F, aic=_F),
    # scope: "global", "layer" or "module"; name: "" for global, the layer number, or the module.
    "similarity": _table(run_a=_S, run_b=_S, scope=_S, name=_S, cosine=_F, orthogonal_fraction=_F, null_sd=_F),
    # null_degrees: the mean of the same angle between two random k-dimensional subspaces of that space
    # (on the right of two LoRA deltas: of their row spaces).
    "subspaces": _table(
        run_a=_S,
        run_b=_S,
        module=_S,
        layer=_I,
        side=_S,
        k=_I,
        dimension=_I,
        index=_I,
        angle_degrees=_F,
        null_degrees=_F,
    ),
    # metric: "nll" or "accuracy"; loss holds the token-mean NLL, accuracy the share right (the other is null).
    "paths": _table(run_a=_S, run_b=_S, probe=_S, metric=_S, alpha=_F, loss=_F, accuracy=_F, n=_I),
    # Max over alpha of the excess over the "chord" (Entezari) or the "mean" of the ends (Frankle), of the NLL or, where
    # the metric is "accuracy", of the error rate; low/high = 95 % paired bootstrap.
    "barriers": _table(
        run_a=_S,
        run_b=_S,
        probe=_S,
        metric=_S,
        chord=_F,
        chord_alpha=_F,
        chord_low=_F,
        chord_high=_F,
        mean=_F,
        mean_alpha=_F,
        mean_low=_F,
        mean_high=_F,
        n=_I,
    ),
    # quantity: eigenvalue, min_eigenvalue, trace, ritz, density, directional, overlap, nll or gradient_norm; `name` is
    # the run of a direction, `x` a density's abscissa or the overlap of a random direction, `parameters` the dimension
    # of `space`.
    "curvature": _table(
        run=_S,
        space=_S,
        operator=_S,
        quantity=_S,
        name=_S,
        index=_I,
        x=_F,
        value=_F,
        error=_F,
        parameters=_I,
        tokens=_I,
    ),
    # The loss of the path from a to b on the curvature probe: to second order about the run `at`, by the Hessian or the
    # GGN, or, where `at` is null, measured.
    "expansions": _table(run_a=_S, run_b=_S, at=_S, operator=_S, alpha=_F, loss=_F, tokens=_I),
    # Rise of the curvature probe's loss near each run, in nats. measure: "sam", "ball", "asam", "noise", "layer noise";
    # `radius` is its radius or standard deviation, `error` the standard error over pairs of `draws`.
    "sharpness": _table(run=_S, measure=_S, radius=_F, value=_F, error=_F, draws=_I, nll=_F, parameters=_I, tokens=_I),
    "cka": _table(run_a=_S, run_b=_S, layer=_I, cka=_F, cka_biased=_F, low=_F, high=_F, n=_I),
}


def to_arrow(table: str, rows: list[dict]) -> pa.Table:
    """Build the Arrow table ``table`` from row dictionaries; missing keys are null, unknown ones raise ``KeyError``."""
    schema = SCHEMAS[table]
    unknown = {key for row in rows for key in row} - set(schema.names)
    if unknown:
        raise KeyError(f"table {table!r} has no column {sorted(unknown)}; it has {schema.names}")
    return pa.Table.from_pylist(rows, schema=schema)
