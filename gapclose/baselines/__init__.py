"""What can be had without training: methods that change the scores of options at inference time, chosen on fit, judged on test."""
