"""The Arrow schema of every table in a store. Angles are in degrees, losses in nats, time in seconds."""

import pyarrow as pa

_F, _I, _S, _B = pa.float64(), pa.int64(), pa.string(), pa.bool_()


def _table(**columns: pa.DataType) -> pa.Schema:
    return pa.schema(list(columns.items()))


_PATH = {"run_a": _S, "run_b": _S, "probe": _S, "metric": _S, "alpha": _F, "loss": _F, "accuracy": _F, "n": _I}
_BARRIER = {
    **{"run_a": _S, "run_b": _S, "probe": _S, "metric": _S},
    **{f"chord{part}": _F for part in ("", "_alpha", "_low", "_high")},
    **{f"mean{part}": _F for part in ("", "_alpha", "_low", "_high")},
    "n": _I,
}
_EVALUATION = {
    **dict.fromkeys(("loss", "loss_low", "loss_high"), _F),
    **dict.fromkeys(("n", "tokens"), _I),
    **dict.fromkeys(("confidence", "agreement", "ece", "accuracy"), _F),
    "problems": _I,
    **dict.fromkeys(("false_false_true", "true_true_false"), _F),
}

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
    # What `similarity` is made of, by module and ordered pair, each run with itself included; those of disjoint modules
    # add up. `inner` is the inner product of the two deltas, `residual` the energy of b without the direction of a,
    # `variance` that of the inner product if both directions were random and their norms kept.
    "moments": _table(run_a=_S, run_b=_S, module=_S, layer=_I, inner=_F, residual=_F, variance=_F),
    # What each cosine is judged by, a row an unordered pair. `seeds`: those that differ, "order", "init", "both", or
    # "same" if none does. `*_null` is the value were all runs orthogonal; `matched_*` that of deltas of equal length.
    "yardsticks": _table(
        run_a=_S,
        run_b=_S,
        same_loss=_B,
        same_settings=_B,
        seeds=_S,
        cosine=_F,
        null_sd=_F,
        z=_F,
        disattenuated=_F,
        centred_cosine=_F,
        centred_null=_F,
        matched_centred_cosine=_F,
        matched_centred_null=_F,
        distance=_F,
        matched_distance=_F,
    ),
    # Cosines between runs of two configurations (loss and settings, named by a first run), by the seeds that differ;
    # within one configuration they are the noise floor. `disattenuated` may exceed 1.
    "floors": _table(
        configuration_a=_S, configuration_b=_S, seeds=_S, n=_I, low=_F, mean=_F, high=_F, disattenuated=_F
    ),
    # A run against the span of the other runs (`n`) of a configuration; `among`: it is of that configuration itself.
    "spans": _table(configuration=_S, run=_S, among=_B, n=_I, dimension=_I, orthogonal_fraction=_F, null_fraction=_F),
    # Cosines of runs of other seeds within losses and between them, for the settings of run `like` (all if empty).
    # `labelings` that the permutation test can tell apart; `draws` is null if all were gone through.
    "separations": _table(
        like=_S,
        runs=_I,
        losses=_I,
        within_n=_I,
        within_mean=_F,
        between_n=_I,
        between_mean=_F,
        d_prime=_F,
        labelings=_I,
        draws=_I,
        p=_F,
        reason=_S,
    ),
    # Runs and base in a plane; scaling: "raw", or "matched" with all deltas at unit length. `stress` is that of the
    # axes so far.
    "maps": _table(scaling=_S, run=_S, x=_F, y=_F),
    "map_axes": _table(scaling=_S, axis=_I, eigenvalue=_F, share=_F, stress=_F),
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
    # scope: "module", "layer" or "global". `changed` counts entries that differ in bf16; angles are those between the
    # top-k singular subspaces of the weights before and after, above module scope medians over modules.
    "off_principal": _table(
        run=_S,
        scope=_S,
        module=_S,
        layer=_I,
        entries=_I,
        changed=_I,
        update_sparsity=_F,
        base_norm=_F,
        shift_norm=_F,
        spectral_shift=_F,
        k=_I,
        gap=_F,
        left_mean_degrees=_F,
        left_max_degrees=_F,
        right_mean_degrees=_F,
        right_max_degrees=_F,
    ),
    # The share of changed entries in a mask, `baseline` if they were placed at random, z in hypergeometric s.d.;
    # `shuffled_*` are those of the same delta with its entries in random places.
    "mask_overlaps": _table(
        run=_S,
        scope=_S,
        module=_S,
        layer=_I,
        mask=_S,
        entries=_I,
        changed=_I,
        mask_entries=_I,
        both=_I,
        expected=_F,
        variance=_F,
        shuffled_changed=_I,
        shuffled_both=_I,
        overlap=_F,
        baseline=_F,
        shuffled_overlap=_F,
        z=_F,
    ),
    # Entries changed by both of two runs, and by either.
    "changed_pairs": _table(
        run_a=_S,
        run_b=_S,
        scope=_S,
        module=_S,
        layer=_I,
        entries=_I,
        both=_I,
        either=_I,
        expected=_F,
        jaccard=_F,
        null_jaccard=_F,
    ),
    # metric: "nll" or "accuracy"; loss holds the token-mean NLL, accuracy the share right (the other is null). `alpha`
    # is irregular where the grid was refined; values outside [0, 1] lie beyond the ends.
    "paths": _table(**_PATH),
    # Max over alpha in [0, 1] of the excess over the "chord" (Entezari) or the "mean" of the ends (Frankle), of the NLL
    # or, where the metric is "accuracy", of the error rate; low/high = 95 % paired bootstrap.
    "barriers": _table(**_BARRIER),
    # The same between deltas of equal norm `norm`: the deltas times `scale_a` and `scale_b`, one of which is 1.
    "matched_paths": _table(**_PATH),
    "matched_barriers": _table(**_BARRIER, scale_a=_F, scale_b=_F, norm=_F),
    # shape: "line", or that of a trained curve, "bezier" or "chain", both on texts that had no part in training it.
    "curve_paths": _table(run_a=_S, run_b=_S, shape=_S, t=_F, loss=_F, n=_I),
    # The largest loss and the barrier over the chord, for a curve also by how much its largest loss lies "below" the
    # line's, with 95 % paired bootstrap intervals; `bend` is how far the bend lies from the midpoint, in distances of
    # the two runs.
    "curve_barriers": _table(
        run_a=_S,
        run_b=_S,
        shape=_S,
        max_loss=_F,
        max_t=_F,
        max_low=_F,
        max_high=_F,
        chord=_F,
        chord_t=_F,
        chord_low=_F,
        chord_high=_F,
        below=_F,
        below_low=_F,
        below_high=_F,
        bend=_F,
        n=_I,
    ),
    # Run a with one `part` ("all": every part) moved by alpha to run b: kind "block" or "module type". `rise` is over
    # the loss of run a, with a 95 % paired bootstrap interval; `excess` over the chord to run a with the part swapped.
    "layerwise": _table(
        run_a=_S,
        run_b=_S,
        kind=_S,
        part=_S,
        alpha=_F,
        loss=_F,
        rise=_F,
        rise_low=_F,
        rise_high=_F,
        excess=_F,
        n=_I,
    ),
    # kind: "run" (alone), "uniform", "group" or "greedy". `barrier` is the loss less the members' mean loss;
    # confidence, agreement and ece are over `tokens` tokens of the `n` texts; false_false_true is the share of
    # `problems` that all members get wrong and their average right, true_true_false the reverse.
    "soups": _table(
        soup=_S,
        kind=_S,
        members=pa.list_(_S),
        **_EVALUATION,
        barrier=_F,
        barrier_low=_F,
        barrier_high=_F,
    ),
    # base + alpha delta; `chosen_loss` is the loss on the other half of the texts, for choosing an alpha.
    "wise": _table(run=_S, alpha=_F, chosen_loss=_F, **_EVALUATION),
    # The plane through three runs, the first its origin, x along the second less the first; x, y and residual (distance
    # from the plane) are Euclidean distances between weights. `planes` is the grid, `plane_runs` every run in it.
    "planes": _table(run_a=_S, run_b=_S, run_c=_S, x=_F, y=_F, loss=_F, n=_I),
    "plane_runs": _table(run_a=_S, run_b=_S, run_c=_S, run=_S, x=_F, y=_F, residual=_F, loss=_F, n=_I),
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
    # `treatment` says what was taken out of the features first, "plain" nothing; `n` counts vectors.
    "cka": _table(run_a=_S, run_b=_S, layer=_I, treatment=_S, cka=_F, cka_biased=_F, low=_F, high=_F, n=_I),
    "layer_cka": _table(run_a=_S, run_b=_S, layer_a=_I, layer_b=_I, treatment=_S, cka=_F, low=_F, high=_F, n=_I),
    # Token means to the base: `change` is |h - h_base| / |h_base|; `n` counts texts, over which intervals are made.
    "drift": _table(
        run=_S,
        layer=_I,
        cosine=_F,
        cosine_low=_F,
        cosine_high=_F,
        change=_F,
        change_low=_F,
        change_high=_F,
        n=_I,
        tokens=_I,
    ),
    # quantity: entropy (nats a token), max_probability, top1_accuracy, ece (expected calibration error).
    "outputs": _table(run=_S, quantity=_S, value=_F, low=_F, high=_F, n=_I, tokens=_I),
    # quantity: kl_ab, KL(a || b) in nats a token; kl_ba, KL(b || a); agreement, the share of equal top guesses.
    "divergences": _table(run_a=_S, run_b=_S, quantity=_S, value=_F, low=_F, high=_F, n=_I, tokens=_I),
    # Of a run's own training loss, `at` the "base" or its own weights ("run"), over `n` examples: `coherence` in [0, n]
    # is n |mean g|^2 / mean |g|^2, `pairwise` (coherence - 1) / (n - 1), which does not grow with n.
    "coherence": _table(
        run=_S,
        at=_S,
        coherence=_F,
        coherence_low=_F,
        coherence_high=_F,
        pairwise=_F,
        pairwise_low=_F,
        pairwise_high=_F,
        gradient_norm=_F,
        n=_I,
        parameters=_I,
    ),
    # Cosine of two losses' mean gradients at the base over the same `n` prompts, each loss under its first run;
    # `expected` estimates that of their expectations, from pairs of different prompts alone.
    "gradient_cosines": _table(
        run_a=_S,
        run_b=_S,
        cosine=_F,
        cosine_low=_F,
        cosine_high=_F,
        expected=_F,
        expected_low=_F,
        expected_high=_F,
        n=_I,
    ),
}


def to_arrow(table: str, rows: list[dict]) -> pa.Table:
    """Build the Arrow table ``table`` from row dictionaries; missing keys are null, unknown ones raise ``KeyError``."""
    schema = SCHEMAS[table]
    unknown = {key for row in rows for key in row} - set(schema.names)
    if unknown:
        raise KeyError(f"table {table!r} has no column {sorted(unknown)}; it has {schema.names}")
    return pa.Table.from_pylist(rows, schema=schema)
