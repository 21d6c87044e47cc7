"""The model browser: search, read, choose, import and check models, without a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import qt

from medsegai.models.card import ModelCard
from medsegai.models.index import ListedModel
from medsegai.system.outside_text import label_text
from MedSegAILib import model_search
from MedSegAILib.panel import dialogs
from MedSegAILib.panel.style import error_style, quiet_style
from MedSegAILib.signals import Signal
from MedSegAILib.slicer_types import QtValue, Widget
from MedSegAILib.translation import tr as _


class ModelBrowser:
    """A separate window, so that it may stay open beside Slicer's.

    Args:
        parent: the widget whose window it belongs to.

    Attributes:
        card_chosen: use this model.
        import_requested: the path of a folder or an archive to import.
        verify_requested: compare the weights of this model with its card.
        index_requested: list the models of the index; nothing is downloaded before that.
        fetch_requested: download this model of the index.
        expectation: the function that returns time and memory of a model on this device in words.
    """

    def __init__(self, parent: Widget) -> None:
        self.card_chosen, self.import_requested = Signal(), Signal()
        self.verify_requested = Signal()
        self.index_requested, self.fetch_requested = Signal(), Signal()
        self.expectation: Callable[[ModelCard], str] = lambda card: ""
        self._cards: tuple[ModelCard, ...] = ()
        self._busy = False
        self._listed: tuple[ListedModel, ...] = ()
        self._shown: list[ModelCard | ListedModel] = []
        self._build(parent)

    def open(self) -> None:
        """Open the window of models."""
        self.dialog.show()
        self.dialog.activateWindow()
        self._text.setFocus()
        self._text.selectAll()

    def close(self) -> None:
        """Close the window of models."""
        self.dialog.hide()

    def show_cards(self, cards: Sequence[ModelCard]) -> None:
        """Offer these models; the chosen model stays chosen, by its folder."""
        self._cards = tuple(cards)
        _refill(self._modality, _("Any modality"), model_search.modalities(cards))
        _refill(self._structure, _("Any structure"), model_search.structures(cards))
        self._search_again()

    def show_index(self, there: bool) -> None:
        """Show whether an index is configured."""
        self._index.visible = there

    def show_listed(self, listed: Sequence[ListedModel]) -> None:
        """Offer the models of an index, below the installed models."""
        self._listed = tuple(listed)
        self._search_again()

    def select(self, card: ModelCard) -> None:
        """Show this model's card."""
        folders = [item.folder for item in self._shown if isinstance(item, ModelCard)]
        if card.folder in folders:
            self._list.setCurrentRow(folders.index(card.folder))

    def current(self) -> ModelCard | None:
        """Return the model that is shown; None if it is not installed, or there is none."""
        shown = self._current()
        return shown if isinstance(shown, ModelCard) else None

    def _current(self) -> ModelCard | ListedModel | None:
        row = self._list.currentRow
        return self._shown[row] if 0 <= row < len(self._shown) else None

    def show_status(self, text: str, problem: bool = False) -> None:
        """Show one line about the state or result of an import or a check."""
        self._status.styleSheet = (error_style if problem else quiet_style)(self._status)
        self._status.text = label_text(text)

    def show_busy(self, busy: bool) -> None:
        """Show whether an import or a check runs, during which no other can start."""
        self._busy = busy
        for button in (self._folder, self._archive, self._index):
            button.enabled = not busy
        self._show_details()

    def _build(self, parent: Widget) -> None:
        self.dialog = qt.QDialog(parent)
        self.dialog.objectName = "modelBrowser"
        self.dialog.windowTitle = _("MedSegAI: models")
        self.dialog.resize(760, 560)
        layout = qt.QVBoxLayout(self.dialog)
        layout.addLayout(self._filters())
        splitter = qt.QSplitter(self.dialog)
        self._list = _named(qt.QListWidget(), "modelList")
        self._list.connect("currentRowChanged(int)", self._on_row_changed)
        self._list.connect("itemDoubleClicked(QListWidgetItem*)", self._on_double_click)
        self._details = _named(qt.QTextBrowser(), "modelDetails")
        self._details.openExternalLinks = False
        splitter.addWidget(self._list)
        splitter.addWidget(self._details)
        splitter.setStretchFactor(1, 1)
        splitter.setSizes([240, 500])
        layout.addWidget(splitter, 1)
        self._status = _named(qt.QLabel(""), "modelStatus")
        self._status.wordWrap = True
        layout.addWidget(self._status)
        layout.addLayout(self._buttons())
        self.show_status(_("Drop a model folder or a zip archive here to import it."))
        self._drops = DropFilter()
        self._drops.watch(self.dialog, self.import_requested.emit)

    def _filters(self) -> Widget:
        layout = qt.QHBoxLayout()
        self._text = _named(qt.QLineEdit(), "modelSearch")
        self._text.placeholderText = _("Search models and structures")
        self._text.clearButtonEnabled = True
        self._text.connect("textChanged(QString)", self._on_query)
        self._modality = _named(qt.QComboBox(), "modalityFilter")
        self._structure = _named(qt.QComboBox(), "structureFilter")
        layout.addWidget(self._text)
        for box in (self._modality, self._structure):
            box.sizeAdjustPolicy = qt.QComboBox.AdjustToMinimumContentsLengthWithIcon
            box.minimumContentsLength = 14
            box.connect("currentIndexChanged(int)", self._on_query)
            layout.addWidget(box)
        return layout

    def _buttons(self) -> Widget:
        layout = qt.QHBoxLayout()
        self._folder = _button("importFolderButton", _("Import folder…"), self._import_folder)
        self._archive = _button("importArchiveButton", _("Import zip…"), self._import_archive)
        self._index = _button("indexButton", _("More models…"), self.index_requested.emit)
        self._index.toolTip = _(
            "List the models in the index of your institute. Nothing is downloaded yet."
        )
        self._index.visible = False
        self._verify = _button("verifyButton", _("Verify weights"), self._ask_to_verify)
        self._verify.toolTip = _("Compare every weights file with the SHA-256 in the model's card.")
        self._use = _button("useButton", _("Use this model"), self._choose)
        self._use.default = True
        for button in (self._folder, self._archive, self._index, self._verify):
            layout.addWidget(button)
        layout.addStretch(1)
        layout.addWidget(self._use)
        return layout

    def _search_again(self) -> None:
        chosen = self.current()
        query = self._query()
        self._list.blockSignals(True)
        self._list.clear()
        cards = model_search.found(self._cards, query)
        for card in cards:
            place = _("bundled") if model_search.is_bundled(card) else _("your own")
            self._list.addItem(f"{card.name}\n{card.version}, {place}")
        listed = model_search.found_listed(self._listed, query)
        for item in listed:
            size = _("{size} MB, not downloaded").format(size=f"{item.bytes / 1e6:.1f}")
            self._list.addItem(f"{item.name or item.id}\n{size}")
        self._shown = [*cards, *listed]
        self._list.blockSignals(False)
        self._list.setCurrentRow(0 if self._shown else -1)
        if chosen is not None:
            self.select(chosen)
        self._show_details()

    def _query(self) -> model_search.Query:
        return model_search.Query(
            self._text.text,
            self._modality.currentText if self._modality.currentIndex > 0 else "",
            self._structure.currentText if self._structure.currentIndex > 0 else "",
        )

    def _show_details(self) -> None:
        shown = self._current()
        self._verify.enabled = isinstance(shown, ModelCard) and not self._busy
        self._use.enabled = isinstance(shown, ModelCard) or (shown is not None and not self._busy)
        self._use.text = (
            _("Download this model") if isinstance(shown, ListedModel) else _("Use this model")
        )
        if shown is None:
            self._details.html = _("No model matches the search.")
        elif isinstance(shown, ListedModel):
            self._details.html = model_search.describe_listed(shown)
        else:
            self._details.html = model_search.describe(shown, self.expectation(shown))

    def _on_query(self, _value: object) -> None:
        self._search_again()

    def _on_row_changed(self, _row: int) -> None:
        self._show_details()

    def _on_double_click(self, _item: QtValue) -> None:
        self._choose()

    def _choose(self) -> None:
        shown = self._current()
        if isinstance(shown, ModelCard):
            self.card_chosen.emit(shown)
            self.close()
        elif shown is not None and not self._busy:
            self.fetch_requested.emit(shown)

    def _ask_to_verify(self) -> None:
        card = self.current()
        if card is not None:
            self.verify_requested.emit(card)

    def _import_folder(self) -> None:
        self._import(dialogs.open_folder(self.dialog, _("Folder of a model")))

    def _import_archive(self) -> None:
        filter = _(
            "Archives and weights (*.zip *.json *.pt *.pth *.pth.tar *.safetensors);;All files (*)"
        )
        self._import(dialogs.open_file(self.dialog, _("Archive of a model"), filter))

    def _import(self, path: str) -> None:
        if path:
            self.import_requested.emit(path)


class DropFilter(qt.QWidget):
    """Accepts files and folders that are dropped on a widget. `dropped` receives the path of each."""

    dropped: Callable[[str], None]

    def watch(self, widget: Widget, dropped: Callable[[str], None]) -> None:
        self.dropped = dropped
        widget.acceptDrops = True
        widget.installEventFilter(self)

    def eventFilter(self, _watched: Widget, event: QtValue) -> bool:
        """Called by Qt for each event of the widget; True keeps the event from it."""
        if event.type() == qt.QEvent.DragEnter:
            if event.mimeData().hasUrls():
                event.acceptProposedAction()
            return True
        if event.type() == qt.QEvent.Drop:
            event.acceptProposedAction()
            for url in event.mimeData().urls():
                if url.isLocalFile():
                    self.dropped(url.toLocalFile())
            return True
        return False


def _named(widget: Widget, name: str) -> Widget:
    widget.objectName = name
    return widget


def _button(name: str, text: str, pressed: Callable[[], None]) -> Widget:
    button = _named(qt.QPushButton(text), name)
    button.autoDefault = False
    button.connect("clicked()", pressed)
    return button


def _refill(box: Widget, everything: str, names: Sequence[str]) -> None:
    """Offer other names; the chosen name stays chosen if it is among them."""
    chosen = box.currentText if box.currentIndex > 0 else ""
    box.blockSignals(True)
    box.clear()
    box.addItem(everything)
    for name in names:
        box.addItem(name)
    box.currentIndex = list(names).index(chosen) + 1 if chosen in names else 0
    box.blockSignals(False)
