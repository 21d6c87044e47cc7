"""The control of the module, without Qt and MRML, so that tests need neither window nor scene.

Panel, scene, queue and application are arguments; `protocols` defines what they must offer.
"""

from __future__ import annotations

from MedSegAILib.controller import texts
from MedSegAILib.controller.batches import Batches
from MedSegAILib.controller.choices import Choices
from MedSegAILib.controller.context import Context
from MedSegAILib.controller.exporting import Exporting
from MedSegAILib.controller.jobs import Jobs
from MedSegAILib.controller.models import Models
from MedSegAILib.controller.protocols import (
    HostProtocol,
    PanelProtocol,
    QueueProtocol,
    SceneProtocol,
)
from MedSegAILib.controller.refining import Refining
from MedSegAILib.controller.results import Results
from MedSegAILib.controller.surfaces import Surfaces
from MedSegAILib.controller.worker_location import Places
from MedSegAILib.translation import counted
from MedSegAILib.translation import tr as _

CLOSE_QUESTION = _(
    "{jobs} running ({names}). If you close Slicer now, running jobs are stopped and their "
    "results are lost. Close Slicer?"
)
SCENE_QUESTION = _(
    "{jobs} running ({names}), on volumes of the scene that is being closed. Wait until they are done, and save "
    "the results before the scene closes? If you choose No, they are stopped."
)


class Controller:
    """Connects panel, scene, queue and application.

    Attributes:
        jobs, results, refining, models, batches, choices, places: the parts.
    """

    def __init__(
        self, panel: PanelProtocol, scene: SceneProtocol, queue: QueueProtocol, host: HostProtocol
    ) -> None:
        self._context = Context(panel, scene, queue, host)
        self.results = Results(panel, scene, host)  # type: ignore[arg-type]  # one scene has both
        self.jobs = Jobs(self._context, self.results)
        self.refining = Refining(self._context, self.results)
        self.exporting = Exporting(self._context, self.results)
        self.surfaces = Surfaces(self._context)
        self.models = Models(self._context)
        self.batches = Batches(self._context)
        self.choices = Choices(self._context, self.results)
        self.places = Places(self._context, self.jobs.update_plan)
        panel.log_requested.connect(self._show_log)
        self._asked_devices = False

    def enter(self) -> None:
        """Update the page when it is shown: volumes may have changed, and devices may be unknown."""
        self.jobs.guess_channels()
        self.jobs.update_plan()
        self.results.refresh()
        self.refining.refresh()
        if not self._asked_devices:
            self._asked_devices = True
            self.places.ask_devices()

    def close_question(self) -> str:
        """Return the question before Slicer closes; "" if no job is running."""
        batch = [_("the batch")] if self.batches.running else []
        return self._question(CLOSE_QUESTION, batch)

    def scene_question(self) -> str:
        """Return the question while the scene closes; "" if no job is running."""
        return self._question(SCENE_QUESTION, [])

    def scene_is_read(self) -> None:
        """Wait until the scene is complete; then `scene_opened` is called."""
        self.choices.wait()

    def scene_opened(self) -> None:
        """Show the choices and the result of a scene that was opened, or existed before the page."""
        self.choices.follow()
        previews = self._context.scene.settle_saved_previews()
        self.results.show_only_one()
        for preview, original in previews:
            self._context.panel.show_message(
                texts.SAVED_PREVIEW.format(preview=preview, original=original)
            )

    def scene_closes(self) -> None:
        """Stop running jobs, whose volumes are removed, and forget the scene."""
        self._context.forget_jobs()
        self._context.queue.cancel_all()
        self.jobs.forget_previews()
        self.refining.forget()
        self.surfaces.forget()
        self.results.show(None)
        self._context.panel.results.fold()
        self.choices.reset()
        self._context.panel.show_message("")

    def _question(self, text: str, others: list[str]) -> str:
        names = others + [
            entry.title
            for entry in self._context.queue.entries
            if str(entry.state) in ("running", "waiting")
        ]
        return _asked(text, names) if names else ""

    def _show_log(self) -> None:
        self._context.host.show_text(_("Log of MedSegAI"), self._context.host.log())


def _asked(text: str, names: list[str]) -> str:
    jobs = counted(len(names), _("MedSegAI job is"), _("MedSegAI jobs are"))
    return text.format(jobs=jobs, names="; ".join(names[:3]))
