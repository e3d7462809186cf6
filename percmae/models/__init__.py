"""Networks: the masked autoencoder, the classifier built on its encoder, weights in and out."""
