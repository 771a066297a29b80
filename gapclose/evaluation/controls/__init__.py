"""Controls of a measurement, and analysis of the layers.

- Text: ``text``, ``text_leak``, ``sentence_encoder``; ``features`` also covers options and
  confidence.
- Probe: ``residualize``, ``random_labels``, ``random_weights``, ``blank_media``, ``mdl``
  (codelength).
- Layers: ``layer_analysis`` with ``logit_lens`` and ``interchange``.
- ``scoring`` compares a control with the reading, ``suite`` builds the controls of a run,
  ``run_controls`` runs them.
"""
