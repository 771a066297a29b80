"""Show what a run measured: ``summary`` as one object, ``console`` as tables, ``page`` as one HTML file, ``compare`` beside other runs."""
