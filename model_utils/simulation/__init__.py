"""What a trained model is for: a calculator for ASE, relaxation, molecular dynamics."""
