"""What the consistency objective is compared with: methods without training (chosen on val or fit, judged on test), and TRL's trainers."""
