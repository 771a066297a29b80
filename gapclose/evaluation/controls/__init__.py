"""Everything that a skeptic tries on a measurement before believing it, and where what is read gets lost.

``features``, ``encoder``, ``refits``, ``blank`` and ``codelength`` are the controls, ``judge`` sets them beside the reading, ``nested``
repeats its choices, ``localise`` looks at the layers and swaps residuals, ``imavb`` computes the source paper's own figures and ``beside``
sets ours beside them; ``examination`` runs them on a run, ``inside`` what looks into its layers, and ``measurement`` puts them into one file.
"""
