-- An owner's links are kept beside the files, so that every device knows them.
DROP TABLE storage_link;
