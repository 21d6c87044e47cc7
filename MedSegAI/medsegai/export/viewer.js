// The part of a case report that can be turned. NiiVue draws; all that is drawn stands in the page itself.
(async () => {
  "use strict";
  const { Niivue, NVImage, MULTIPLANAR_TYPE, SLICE_TYPE, SHOW_RENDER } = niivue;
  const data = JSON.parse(document.getElementById("viewer-data").textContent);
  const stage = document.getElementById("viewer");
  const place = document.getElementById("viewer-place");
  const rows = [...document.querySelectorAll("tr[data-mm]")];

  const say = (location) => {
    const [r, a, s] = location.mm;
    const value = Math.round(location.values[1]?.value ?? 0);
    place.textContent = `R ${r.toFixed(1)}, A ${a.toFixed(1)}, S ${s.toFixed(1)} mm  ${data.names[value] ?? ""}`;
    for (const row of rows) row.classList.toggle("here", row.dataset.value === String(value));
  };

  const viewer = new Niivue({
    backColor: [0, 0, 0, 1],
    clipPlaneColor: [0, 0, 0, 0],
    crosshairColor: [1, 0.85, 0.2, 0.8],
    dragAndDropEnabled: false,
    isRadiologicalConvention: true, // the patient's left is on the right, as in the pictures and in Slicer
    isSliceMM: true, // planes of the world, so that coordinates of oblique scans hold
    loadingText: "",
    multiplanarLayout: MULTIPLANAR_TYPE.GRID,
    multiplanarShowRender: SHOW_RENDER.ALWAYS,
    onLocationChange: say,
    show3Dcrosshair: true,
  });

  let structures = null;

  // A structure is hidden in slices and in 3D by a colour that cannot be seen.
  const isShown = (number) => structures.image.colormapLabel.lut[4 * number + 3] > 0;
  const show = (number, shown) => {
    structures.colors.A[number] = shown ? 255 : 0;
    structures.image.setColormapLabel(structures.colors);
    viewer.updateGLVolume();
  };

  const load = async (layer) => {
    const image = await NVImage.loadFromBase64({
      base64: layer.base64,
      name: `${layer.name}.nii.gz`,
      colormap: layer.colormap,
      cal_min: 0,
      cal_max: layer.highest,
      opacity: layer.opacity,
    });
    if (layer.colors) {
      image.setColormapLabel(layer.colors);
      structures = { image, colors: layer.colors };
    }
    viewer.addVolume(image);
  };

  const go = (row) => {
    const mm = row.dataset.mm.split(" ").map(Number);
    viewer.scene.crosshairPos = viewer.mm2frac(mm, 0, true);
    viewer.createOnLocationChange();
    viewer.drawScene();
  };

  const listen = () => {
    for (const slider of document.querySelectorAll("#viewer input[data-layer]")) {
      slider.addEventListener("input", () => viewer.setOpacity(Number(slider.dataset.layer), Number(slider.value)));
    }
    for (const eye of document.querySelectorAll("button.eye")) {
      const number = Number(eye.closest("tr").dataset.value);
      const mark = () => eye.setAttribute("aria-pressed", String(isShown(number)));
      eye.addEventListener("click", (event) => {
        event.stopPropagation(); // the row would lead to the structure
        show(number, !isShown(number));
        mark();
      });
      eye.addEventListener("keydown", (event) => event.stopPropagation());
      mark();
    }
    const cut = document.getElementById("viewer-cut");
    // From nothing in front of the head (a depth above 0.5) to half of it.
    cut.addEventListener("input", () => viewer.setClipPlane([0.6 - Number(cut.value), 180, 20]));
    for (const row of rows) {
      row.addEventListener("click", () => go(row));
      row.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        go(row);
      });
    }
  };

  try {
    await viewer.attachToCanvas(document.getElementById("viewer-canvas"));
    viewer.setSliceType(SLICE_TYPE.MULTIPLANAR);
    for (const layer of data.layers) await load(layer);
  } catch (error) {
    place.textContent = `The viewer cannot be shown (${error.message}). It needs WebGL 2; the pictures below do not.`;
    return;
  }
  listen();
  if (rows.length) go(rows[0]);
  window.medsegaiViewer = {
    where: () => Array.from(viewer.frac2mm(viewer.scene.crosshairPos, 0, true)).slice(0, 3),
    isShown,
  };
  stage.dataset.ready = "yes";
})();
