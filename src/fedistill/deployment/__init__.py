"""What is done with trained models: they are saved with their preprocessing, loaded, and classify samples."""
