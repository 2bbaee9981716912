"""Made images in the layouts of the real data sets: one picture for each class (more where a split needs them), of a grey that tells the class.

`LAYOUTS[name](root)` writes the data set of that name; the grey of class k, in the order of its declaration, is `grey(k)`.
"""
import csv, io, json, os, pickle, struct
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image
from rils_nb.data.benchmarks import BENCHMARKS

LAYOUTS = {}

def layout(f): return LAYOUTS.setdefault(f.__name__, f)

def grey(k): return k * 7 % 251  # classes that are neighbours look different

@cache
def png(k, size=(12, 10)):
    Image.new('RGB', size, (grey(k),) * 3).save(buffer := io.BytesIO(), 'PNG')
    return buffer.getvalue()

def write(path, content=''):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())

def classes(name): return list(BENCHMARKS[name].classes)

def under(text): return text.replace(' ', '_')

def array(name, size, order=None):  # (n,size,size,3), labels: a picture of each class
    n = len(classes(name))
    labels = list(order or range(n))
    return np.stack([np.full((size, size, 3), grey(k), np.uint8) for k in labels]), labels

def folders(root, names, file='a.JPEG'):
    for k, c in enumerate(names): write(root/c/file, png(k))

@layout
def food101(root):
    for k, c in enumerate(classes('food101')): write(root/'food-101'/'images'/under(c)/'1.jpg', png(k))
    write(root/'food-101'/'meta'/'test.json', json.dumps({under(c): [f'{under(c)}/1'] for c in reversed(classes('food101'))}))

def _cifar(root, name, folder, files, meta, label, shown):
    images, labels = array(name, 32)
    for f in files: write(root/folder/f)
    test = dict(data=images.transpose(0, 3, 1, 2).reshape(len(labels), -1))
    (root/folder/files[-1]).write_bytes(pickle.dumps(test | {label: labels}))
    write(root/folder/meta, pickle.dumps({shown: [under(c) for c in classes(name)]}))

@layout
def cifar10(root): _cifar(root, 'cifar10', 'cifar-10-batches-py', [f'data_batch_{i}' for i in range(1, 6)] + ['test_batch'], 'batches.meta', 'labels', 'label_names')

@layout
def cifar100(root): _cifar(root, 'cifar100', 'cifar-100-python', ['train', 'test'], 'meta', 'fine_labels', 'fine_label_names')

@layout
def stl10(root):
    images, labels = array('stl10', 96)
    for f in ('train_X.bin', 'train_y.bin', 'unlabeled_X.bin'): write(root/'stl10_binary'/f)
    write(root/'stl10_binary'/'test_X.bin', images.transpose(0, 3, 2, 1).tobytes())  # columns first
    write(root/'stl10_binary'/'test_y.bin', np.array([k + 1 for k in labels], np.uint8).tobytes())
    write(root/'stl10_binary'/'class_names.txt', '\n'.join(classes('stl10')))

@layout
def caltech101(root):
    for k, c in enumerate(classes('caltech101')):
        for i in range(1, 33): write(root/'caltech101'/'101_ObjectCategories'/under(c)/f'image_{i:04}.jpg', png(k))
    write(root/'caltech101'/'101_ObjectCategories'/'BACKGROUND_Google'/'tmp', b'left behind')

@layout
def sun397(root):
    lines = [f'/{c[0]}/' + ('apartment_building/outdoor' if c == 'apartment building outdoor' else under(c)) + '/sun_a.jpg' for c in classes('sun397')]
    for k, line in enumerate(lines): write(root/'SUN397'/line[1:], png(k))
    write(root/'SUN397'/'Testing_01.txt', '\n'.join(reversed(lines)) + '\n')

@layout
def cub200(root):
    rows = [f'{k + 1:03}.{under(c)}' for k, c in enumerate(classes('cub200'))]
    for k, row in enumerate(rows):
        for i in (0, 1): write(root/'CUB_200_2011'/'images'/row/f'{i}.jpg', png(k))
    write(root/'CUB_200_2011'/'images.txt', ''.join(f'{2 * k + i + 1} {row}/{i}.jpg\n' for k, row in enumerate(rows) for i in (0, 1)))
    write(root/'CUB_200_2011'/'train_test_split.txt', ''.join(f'{i + 1} {i % 2}\n' for i in range(400)))

@layout
def cars(root):
    from importlib import import_module
    savemat, base, names = import_module('scipy.io').savemat, root/'stanford_cars', classes('cars')
    for k in range(196): write(base/'cars_test'/f'{k:05}.jpg', png(k))
    (base/'devkit').mkdir()
    rows = np.array([(np.uint8(k + 1), f'{k:05}.jpg') for k in range(196)], [('class', object), ('fname', object)])
    savemat(base/'cars_test_annos_withlabels.mat', dict(annotations=rows))
    savemat(base/'devkit'/'cars_meta.mat', dict(class_names=np.array(names, object)))

@layout
def aircraft(root):
    data, names = root/'fgvc-aircraft-2013b'/'data', classes('aircraft')
    for k in range(100): write(data/'images'/f'{k:07}.jpg', png(k))
    write(data/'variants.txt', '\n'.join(sorted(names)))
    write(data/'images_variant_test.txt', ''.join(f'{k:07} {c}\n' for k, c in enumerate(names)))

@layout
def pets(root):
    breeds = sorted((under(c) for c in classes('pets')), key=str.lower)
    number = {c: k for k, c in enumerate(map(under, classes('pets')))}
    for c in breeds: write(root/'oxford-iiit-pet'/'images'/f'{c}_1.jpg', png(number[c]))
    write(root/'oxford-iiit-pet'/'annotations'/'test.txt', ''.join(f'{c}_1 {i + 1} 1 1\n' for i, c in enumerate(breeds)))

@layout
def flowers(root):
    from importlib import import_module
    savemat, base = import_module('scipy.io').savemat, root/'flowers-102'
    for k in range(102): write(base/'jpg'/f'image_{k + 1:05}.jpg', png(k))
    savemat(base/'imagelabels.mat', dict(labels=np.arange(1, 103)))
    savemat(base/'setid.mat', dict(tstid=np.arange(102, 0, -1)))

@layout
def dtd(root):
    for k, c in enumerate(classes('dtd')): write(root/'dtd'/'dtd'/'images'/c/'a.jpg', png(k))
    write(root/'dtd'/'dtd'/'labels'/'test1.txt', ''.join(f'{c}/a.jpg\n' for c in classes('dtd')))

@layout
def mnist(root):
    images, labels = array('mnist', 28, order=[9, 0, 1, 2, 3, 4, 5, 6, 7, 8])
    for part in ('train', 't10k'):
        write(root/'MNIST'/'raw'/f'{part}-images-idx3-ubyte', struct.pack('>4i', 2051, 10, 28, 28) + images[..., 0].tobytes())
        write(root/'MNIST'/'raw'/f'{part}-labels-idx1-ubyte', struct.pack('>2i', 2049, 10) + bytes(labels))

@layout
def fer2013(root):
    (root/'fer2013').mkdir()
    with open(root/'fer2013'/'fer2013.csv', 'w', newline='') as f:
        table = csv.writer(f)
        table.writerow(('emotion', 'pixels', 'Usage'))
        names = classes('fer2013')
        for i, c in enumerate(('angry', 'disgust', 'fear', 'happy', 'sad', 'surprise', 'neutral')):
            for usage in ('Training', 'PublicTest', 'PrivateTest'): table.writerow((i, ' '.join([str(grey(names.index(c)))] * 48 * 48), usage))

@layout
def gtsrb(root):
    for k in range(43): write(root/'gtsrb'/'GTSRB'/'Final_Test'/'Images'/f'{k:05}.ppm', png(k))
    rows = ''.join(f'{k:05}.ppm;12;10;1;1;9;9;{k}\n' for k in range(43))
    write(root/'gtsrb'/'GT-final_test.csv', 'Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\n' + rows)

@layout
def country211(root): folders(root/'country211'/'test', classes('country211'), 'a.jpg')

@layout
def clevr(root):
    base, scenes = root/'clevr'/'CLEVR_v1.0', []
    for k, c in enumerate(classes('clevr')):
        write(base/'images'/'val'/f'{k}.png', png(k))
        scenes.append(dict(image_filename=f'{k}.png', objects=[{}] * int(c)))
    write(base/'scenes'/'CLEVR_val_scenes.json', json.dumps(dict(scenes=scenes)))

@layout
def sst2(root): folders(root/'rendered-sst2'/'test', classes('sst2'), 'a.png')

@layout
def eurosat(root):
    for k, c in enumerate(classes('eurosat')):
        base = root/'eurosat'/'2750'/c
        base.mkdir(parents=True)
        for i, f in enumerate(sorted(f'{c}_{i}.jpg' for i in range(1, 1003))): (base/f).write_bytes(png(k) if i >= 1000 else b'')

@layout
def resisc45(root):
    for k, c in enumerate(classes('resisc45')):
        for i in range(1, 6): write(root/'NWPU-RESISC45'/under(c)/f'{under(c)}_{i:03}.jpg', png(k))

@layout
def imagenet(root): folders(root/'imagenet'/'val', classes('imagenet'))

for name, folder in (('imagenet-v2', 'imagenetv2-matched-frequency-format-val'), ('imagenet-sketch', 'sketch'),
                     ('imagenet-a', 'imagenet-a'), ('imagenet-r', 'imagenet-r')):
    LAYOUTS[name] = lambda root, name=name, folder=folder: folders(root/folder, classes(name))

@layout
def objectnet(root):
    for k, c in enumerate(classes('objectnet')):
        image = Image.new('RGB', (16, 14), 'red')
        image.paste((grey(k),) * 3, (2, 2, 14, 12))
        path = root/'objectnet-1.0'/'images'/under(c.replace("'", '').replace(' / ', ' ').replace('/', ' ').replace('(', '').replace(')', ''))/'a.png'
        path.parent.mkdir(parents=True)
        image.save(path)
    write(root/'objectnet-1.0'/'images'/'air_freshener'/'a.png', png(0))  # none of ImageNet's
