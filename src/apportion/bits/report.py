"""The report of a quantization, drawn from its saved values alone: a Markdown page and three plots."""

from pathlib import Path

import numpy as np

from apportion.bits.plan import Plan, Sensitivity, plan_from, sensitivity_from
from apportion.bits.plots import draw_bits, draw_frontier, draw_interactions
from apportion.core.artifact import Json, read_json, write_bytes
from apportion.core.output import REPORT_FOLDER
from apportion.models.text import told

FILES = tuple(f"{REPORT_FOLDER}/{name}" for name in ("report.md", "frontier.png", "bits.png", "interactions.png"))


def write_report(folder: Path) -> list[str]:
    """Write `report/` beside a finished plan; returns the files' names within the folder."""
    plan = plan_from(read_json(folder / "plan.json"))
    frontier = [plan_from(item) for item in read_json(folder / "frontier.json")["plans"]]
    sensitivity = sensitivity_from(read_json(folder / "sensitivity.json"))
    result = read_json(folder / "result.json")
    (folder / REPORT_FOLDER).mkdir(exist_ok=True)
    write_bytes(folder / FILES[1], draw_frontier(frontier, plan, result["nll_fp"], loss_name(result)))
    write_bytes(folder / FILES[2], draw_bits(plan, sensitivity))
    write_bytes(folder / FILES[3], draw_interactions(sensitivity))
    write_bytes(folder / FILES[0], page(plan, frontier, sensitivity, result).encode())
    return list(FILES)


def page(plan: Plan, frontier: list[Plan], sensitivity: Sensitivity, result: Json) -> str:
    """The Markdown page."""
    settings, kl = plan.settings, entropies(result)
    lines = [
        f"# {plan.avg_bits:.2f} bits on average ({plan.asked})",
        "",
        f"{result['bytes']:,} bytes of weights on disk, {plan.player_bytes:,} of them in the {len(plan.costs.players)} "
        f"players ({result['stored_bits']:.2f} bits per weight with scales); {vocabulary_note(result)}. "
        f"{loss_name(result)} on the calibration text ({settings['calibration_source']}{told(result.get('bos'))}), "
        "nats per token:",
        "",
        "| full precision | all at highest | this plan | all at lowest |",
        "|---|---|---|---|",
        "| {nll_fp:.4f} | {nll_high:.4f} | **{nll_plan:.4f}** | {nll_low:.4f} |".format(**result),
        "",
        *divergence_note(result),
        f"Method `{plan.method}`; rounding {roundings(settings)}; widths "
        f"{', '.join(width.name for width in plan.costs.widths)}. {how_chosen(plan)}",
        f"{result['evaluations']} coalitions measured in {result['block_forwards']:,} block forwards "
        f"({result['naive_block_forwards']:,} without prefix sharing), {result['seconds']:.0f} s."
        + (f" {result['resumed_evaluations']} more by an earlier run." if result["resumed_evaluations"] else ""),
        *([choice_note(result["choice"])] if result["choice"] else []),
        *([tuning_note(result["tuned"])] if result["tuned"] else []),
        *memory_note(result["execution"]),
        "",
        "## The plain alternatives",
        "",
        f"| every player at | bytes | within the budget | {'mean KL' if any(kl) else 'loss'} as sampled | "
        "as written, judged |",
        "|---|---|---|---|---|",
        *(uniform_row(row, kl) for row in result["uniform"]),
        f"| this plan | {result['bytes']:,} | yes | {result['nll_plan_sampled'] - kl[0]:.4f} | "
        f"{judged_cell(result, kl)} |",
        "",
        "## Other budgets from the same samples",
        "",
        "| average bits | bytes | predicted loss | measured loss |",
        "|---|---|---|---|",
        *(
            f"| {item.avg_bits:.2f} | {item.total_bytes:,} | {item.predicted_nll:.4f} | {item.measured_nll:.4f} |"
            for item in frontier
        ),
        "",
        "![frontier](frontier.png)",
        "",
        "## Width of every player",
        "",
        "![bits](bits.png)",
        "",
        *player_table(plan, sensitivity),
        "",
        "## Interactions",
        "",
        interaction_note(sensitivity),
        "",
        "![interactions](interactions.png)",
        "",
    ]
    return "\n".join(lines)


def loss_name(result: Json) -> str:
    """What the losses of a result are."""
    if result.get("labels") == "predictions":
        return "Mean cross-entropy to full precision's predictions"
    return "Mean NLL"


def divergence_note(result: Json) -> list[str]:
    """The plan's mean KL divergence from full precision, where it was measured."""
    if result.get("kl_plan") is None:
        return []
    judged = result["kl_judged"]
    aside = "" if judged is None else f", {judged:.4f} on {result['judged_on']}"
    return [f"Mean KL divergence of this plan from full precision: {result['kl_plan']:.4f} nats per token{aside}.", ""]


def vocabulary_note(result: Json) -> str:
    """Widths of embedding and head, and bits over all parameters."""
    found = result["vocabulary"]
    widths = [
        f"{name} {found['widths'][name]}"
        if name in found["widths"]
        else f"{name} at 16 bits ({found['kept'].get(name, 'chosen')})"
        for name in found["names"]
    ]
    return f"{', '.join(widths)}; {result['bits_per_weight']:.2f} bits per parameter of the file"


def entropies(result: Json) -> tuple[float, float]:
    """Full precision's own losses, as sampled and where plans were judged, to be taken away where KL is shown."""
    if result.get("labels") != "predictions":
        return 0.0, 0.0
    judged = 0.0 if result["kl_judged"] is None else result["nll_judged"] - result["kl_judged"]
    return result["nll_fp"], judged


def judged_cell(row: Json, own: tuple[float, float]) -> str:
    """The loss or KL of a plan as written, on the windows that finalists are judged on."""
    return "not tried" if row["nll_judged"] is None else f"{row['nll_judged'] - own[1]:.4f}"


def uniform_row(row: Json, own: tuple[float, float]) -> str:
    """One uniform plan of the table."""
    fits = "yes" if row["fits"] else "no"
    sampled = f"{row['nll_sampled'] - own[0]:.4f}"
    return f"| {row['width']} | {row['bytes']:,} | {fits} | {sampled} | {judged_cell(row, own)} |"


def roundings(settings: Json) -> str:
    """The rounding that values were measured with, and the one of the written weights where it is another."""
    measured, written = settings["rounding"], settings["apply_rounding"]
    return f"`{measured}`" if measured == written else f"`{measured}` measured, `{written}` written"


def choice_note(choice: Json) -> str:
    """What was chosen where nothing was asked, and why."""
    tuned = f", {choice['tune']} steps of tuning" if choice["tune"] else ", untuned"
    return f"Rounding {choice['rounding']}{tuned}: {choice['reason']}."


def tuning_note(tuned: Json) -> str:
    """What tuning the written weights gained, or that it gained nothing."""
    learned = tuned["learned"].capitalize()
    at = tuned.get("diverged")
    ended = "" if at is None else f" It ended at step {at}, where the loss was not finite any more."
    looks = [f"{loss:.4f} after {step}" for step, loss in tuned.get("looks", ())]
    ended += f" At the looks: {', '.join(looks)}." if looks else ""
    slowed = ", ".join(map(str, tuned.get("slowed", ())))
    ended += f" No better than before at step {slowed}: from there back to the best, at slower rates." if slowed else ""
    ended += " Full precision was asked anew at every step, for want of memory." if "anew" in tuned["execution"] else ""
    if not tuned["steps"]:
        return (
            f"{learned} were tuned for {tuned['asked']} steps without gain on windows kept aside; they are as "
            f"rounded.{ended}"
        )
    return (
        f"{learned} tuned, best after {tuned['steps']} of {tuned['asked']} steps: cross-entropy to full precision on "
        f"windows kept aside {tuned['before']:.4f} before, {tuned['after']:.4f} after. The loss of this plan above is "
        f"on text that tuning may have seen.{ended}"
    )


def memory_note(execution: Json) -> list[str]:
    """What was given up since memory ran out, or that graphs could not be recorded; nothing where all went well."""
    given_up = [f"Memory ran out, so {', then '.join(execution['memory'])}."] if execution["memory"] else []
    return given_up + ([f"Measured {execution['engine']}."] if "until" in execution["engine"] else [])


def how_chosen(plan: Plan) -> str:
    """What vouches for the plan: the solver's proof, its gap, or measurements."""
    if plan.optimal:
        return "The surrogate's optimum was proved."
    if plan.source == "program":
        return f"The solver stopped {plan.gap:.2%} from proof."
    judged = f", judged on {plan.judged_on}" if plan.judged_on else ""
    return f"The best of the plans measured within the budget (found by: {plan.source}{judged})."


def player_table(plan: Plan, sensitivity: Sensitivity) -> list[str]:
    """Width and cost of every player; the standard error where the estimator has one."""
    lowest = sensitivity.linear[sensitivity.choices[:, 1] == 0]
    errors = sensitivity.details.get("phi_se")
    head = ["| player | width | cost of the lowest width, nats |" + (" standard error |" if errors else "")]
    rule = ["|---|---|---|" + ("---|" if errors else "")]
    rows = [
        f"| {name} | {width} | {cost:.5f} |" + (f" {errors[i]:.5f} |" if errors else "")
        for i, ((name, width), cost) in enumerate(zip(plan.by_name().items(), lowest, strict=True))
    ]
    return head + rule + rows


def interaction_note(sensitivity: Sensitivity) -> str:
    """What the heat map shows."""
    if not np.any(sensitivity.pair):
        return "This method uses no interactions."
    if sensitivity.method == "coopq":
        return "Twice the shrunk covariance of marginals, as the paper's objective has it (nats squared)."
    return "Fitted cost of two choices together, beyond the sum of both alone (nats)."
